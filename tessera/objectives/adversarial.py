"""Two players: one makes pictures, the other, the critic, scores how real they look. The non-saturating logistic game
(Goodfellow et al. 2014) with a penalty on the critic's slope at real pictures, R1 (Mescheder et al. 2018).

Legend: B pictures, scores [B] high for real ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.objectives.tally import Tally


def fooling(scores: Tensor) -> Tally:
    """What the maker of pictures minimises: sum of -ln sigmoid(score) over its pictures."""
    return Tally(F.softplus(-scores.float()).sum(), len(scores))


def telling(real: Tensor, made: Tensor) -> Tally:
    """What the critic minimises: -ln sigmoid of the scores of real pictures, and -ln (1 - sigmoid) of the others, each
    summed over their B."""
    loss = F.softplus(-real.float()).sum() + F.softplus(made.float()).sum()
    return Tally(loss, len(real))


def slope(critic: nn.Module, pictures: Tensor) -> Tally:
    """R1: half the squared length of the gradient of a picture's score by its pixels, summed over the pictures. It can
    be differentiated by the critic's weights."""
    with torch.enable_grad():
        pictures = pictures.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(critic(pictures).sum(), pictures, create_graph=True)
    return Tally(gradient.square().sum() / 2, len(pictures))


def frozen_scores(critic: nn.Module, pictures: Tensor) -> Tensor:
    """Scores that are differentiated by the pictures and not by the critic's weights."""
    still = {name: value.detach() for name, value in critic.named_parameters()}
    return torch.func.functional_call(critic, still, (pictures,))
