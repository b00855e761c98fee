"""A table to act on: pictures, words, actions. Importing this registers `tessera/Tabletop-v0` with Gymnasium."""

from tessera.data.worlds.tabletop.chains import Chain, chain, demonstrations
from tessera.data.worlds.tabletop.env import ID, Tabletop
from tessera.data.worlds.tabletop.expert import expert
from tessera.data.worlds.tabletop.goals import TASKS, Goal, done, random_goal
from tessera.data.worlds.tabletop.table import Table, random_table

__all__ = [
    "ID",
    "TASKS",
    "Chain",
    "Goal",
    "Table",
    "Tabletop",
    "chain",
    "demonstrations",
    "done",
    "expert",
    "random_goal",
    "random_table",
]
