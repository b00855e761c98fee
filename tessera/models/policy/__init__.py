"""Policies: from what a robot sees and is told to what it does."""

from tessera.models.policy.configuration import GR1Config
from tessera.models.policy.modeling import GR1Policy, PolicyOutput, Seen

__all__ = ["GR1Config", "GR1Policy", "PolicyOutput", "Seen"]
