"""Losses on what a detector says of regions (LXMERT, Tan and Bansal 2019): its features, its labels.

Both are sums over regions; the number they are divided by is that of all regions, hidden or not, as published.

Legend: N regions, F width of features, C classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tessera.objectives.tally import Tally


def hidden_features(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tally:
    """Smooth L1 averaged over F, of the hidden regions: [N, F] twice, and bool [N]."""
    error = F.smooth_l1_loss(predicted.float(), target.detach().float(), reduction="none").mean(dim=-1)
    return Tally((error * hidden).sum(), len(predicted))


def detected_labels(logits: Tensor, labels: Tensor, confidence: Tensor) -> Tally:
    """Cross-entropy weighted by the detector's confidence: [N, C], integer [N], float [N] in [0, 1]."""
    error = F.cross_entropy(logits.float(), labels, reduction="none")
    return Tally((error * confidence).sum(), len(labels))
