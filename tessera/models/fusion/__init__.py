"""Fusion of a sentence and the regions of a picture by three encoders (LXMERT)."""

from tessera.models.fusion.configuration import FusionConfig
from tessera.models.fusion.finetuning import FusionForPairs, FusionForQuestionAnswering, encoders_from
from tessera.models.fusion.modeling import FusionModel
from tessera.models.fusion.outputs import Targets
from tessera.models.fusion.pretraining import FusionForPreTraining

__all__ = [
    "FusionConfig",
    "FusionForPairs",
    "FusionForPreTraining",
    "FusionForQuestionAnswering",
    "FusionModel",
    "Targets",
    "encoders_from",
]
