"""Token reducers: fewer tokens, and the matrix that made them."""

from tessera.reduce.base import Reducer, Reduction, class_importance, mean_importance
from tessera.reduce.registry import REDUCERS, create
from tessera.reduce.schedule import Schedule

__all__ = ["REDUCERS", "Reducer", "Reduction", "Schedule", "class_importance", "create", "mean_importance"]
