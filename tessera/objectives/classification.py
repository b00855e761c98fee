"""Cross-entropy of a picture's class, and mixtures of pictures to learn it from.

Legend: B pictures of H x W pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.errors import UserError
from tessera.objectives.tally import Tally


def class_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tally:
    """Sum of -log p(class) over pictures, in fp32.

    Args:
        logits: [B, K].
        targets: classes int [B], or the share of each class float [B, K].
        smoothing: share of every target that is spread over all classes (Szegedy et al. 2016).
    """
    total = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing, reduction="sum")
    return Tally(total, len(targets))


@dataclass(frozen=True)
class Mixing:
    """Each batch mixed with itself in reverse: all pixels blended (mixup, Zhang et al. 2018) or a rectangle replaced
    (CutMix, Yun et al. 2019), and the classes in the same share.

    Args:
        mixup, cutmix: alpha of the Beta(alpha, alpha) that the share is drawn from; 0 switches one off.
        chance: that a batch is mixed at all.
        switch: that a mixed batch is cut where both are on.

    Raises:
        UserError: a negative alpha, both 0, or a chance outside [0, 1].
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    chance: float = 1.0
    switch: float = 0.5

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0 or max(self.mixup, self.cutmix) == 0:
            raise UserError(f"mixup {self.mixup} and cutmix {self.cutmix} mix nothing; one is above 0, none below")
        if not 0 <= self.chance <= 1 or not 0 <= self.switch <= 1:
            raise UserError(f"chance {self.chance} and switch {self.switch} are chances, in [0, 1]")

    def __call__(self, pictures: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, H, W] and classes int [B] -> mixed pictures and shares float [B, K]. The draws come from
        PyTorch's generator; what was given stays as it was."""
        shares = F.one_hot(labels, classes).float()
        chance, switch = torch.rand(2).tolist()
        if chance >= self.chance:
            return pictures, shares
        if self.cutmix and (not self.mixup or switch < self.switch):
            pictures, kept = _cut(pictures, _share(self.cutmix))
        else:
            kept = _share(self.mixup)
            pictures = pictures.lerp(pictures.flip(0), 1 - kept)
        return pictures, shares.lerp(shares.flip(0), 1 - kept)


def _share(alpha: float) -> float:
    return float(torch.distributions.Beta(alpha, alpha).sample())


def _cut(pictures: Tensor, kept: float) -> tuple[Tensor, float]:
    """Pictures with a rectangle of about 1 - kept of their area from others, and the share that was in fact kept."""
    height, width = pictures.shape[-2:]
    side = (1 - kept) ** 0.5
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    row, column = (int(torch.randint(limit, ())) for limit in (height, width))
    rows = slice(max(0, row - half_height), min(height, row + half_height))
    columns = slice(max(0, column - half_width), min(width, column + half_width))
    mixed = pictures.clone()
    mixed[..., rows, columns] = pictures.flip(0)[..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - area / (height * width)
