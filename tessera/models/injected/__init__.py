"""A frozen language model that sees through one token put before the states of its later layers (eP-ALM)."""

from tessera.models.injected.configuration import InjectedLMConfig
from tessera.models.injected.modeling import InjectedLMForConditionalGeneration

__all__ = ["InjectedLMConfig", "InjectedLMForConditionalGeneration"]
