"""What reads the feature pyramid: heads for classes, for the thing that a phrase names, and for depth.

Shape legend: B pictures; feature maps from fine to coarse, [B, C_i, h / 2^i, w / 2^i].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _to(states: Tensor, like: Tensor, mode: str, align_corners: bool | None = None) -> Tensor:
    return F.interpolate(states, size=like.shape[-2:], mode=mode, align_corners=align_corners)


def _conv(into: int, out: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    layers = nn.Sequential(nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
    nn.init.kaiming_normal_(layers[0].weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
    return layers


class SemanticFPN(nn.Module):
    """Panoptic FPN's semantic branch on a feature pyramid network (Kirillov et al. 2019; mmsegmentation's FPN and
    FPNHead): logits [B, K, h * 2^finer, w * 2^finer].

    Args:
        channels: of the feature maps.
        finer: doublings of the finest map: a pyramid of few stages is coarse.
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int, dropout: float, finer: int = 0) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(one, width, 1) for one in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.doublings = [stage + finer for stage in range(len(channels))]
        self.scales = nn.ModuleList(
            nn.ModuleList(_conv(width, width) for _ in range(max(1, number))) for number in self.doublings
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)
        self.classify.no_muon = True  # type: ignore[assignment]
        for conv in (*self.laterals, *self.smooth):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        states = [lateral(one) for lateral, one in zip(self.laterals, features, strict=True)]
        for stage in range(len(states) - 1, 0, -1):  # from coarse to fine
            states[stage - 1] = states[stage - 1] + _to(states[stage], states[stage - 1], "nearest")
        summed: Tensor | None = None
        for smooth, convs, number, one in zip(self.smooth, self.scales, self.doublings, states, strict=True):
            one = smooth(one)
            for conv in convs:  # type: ignore[attr-defined]
                one = conv(one)
                if number:
                    one = F.interpolate(one, scale_factor=2, mode="bilinear", align_corners=False)
            summed = one if summed is None else summed + _to(one, summed, "bilinear", False)
        assert summed is not None
        return self.classify(self.dropout(summed))


class ReferringDecoder(nn.Module):
    """LAVT's decoder (Yang et al. 2022): from the coarsest map to the finest, each step two convolutions of the last
    result beside the next map. Logits [B, 2, h * 2^finer, w * 2^finer], of the rest and of the thing.

    Args:
        channels: of the feature maps.
        finer: further steps, which double the finest map.
    """

    def __init__(self, channels: Sequence[int], finer: int = 0) -> None:
        super().__init__()
        *others, coarsest = channels
        width = coarsest // 2
        beside = [*reversed(others), *[0] * finer]
        before = [coarsest, *[width] * (len(beside) - 1)]
        self.steps = nn.ModuleList(
            nn.Sequential(_conv(into + more, width), _conv(width, width))
            for into, more in zip(before, beside, strict=True)
        )
        self.classify = nn.Conv2d(width, 2, 1)
        self.classify.no_muon = True  # type: ignore[assignment]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        *others, states = features
        following: list[Tensor | None] = [*reversed(others)]
        following += [None] * (len(self.steps) - len(following))
        for step, more in zip(self.steps, following, strict=True):
            if more is None:
                states = F.interpolate(states, scale_factor=2, mode="bilinear", align_corners=True)
            else:
                states = torch.cat([_to(states, more, "bilinear", True), more], dim=1)
            states = step(states)
        return self.classify(states)


class DepthDecoder(nn.Module):
    """All maps brought to the coarsest but one, then doubled by transposed convolutions (Xiao et al. 2018, as VPD's
    depth model has it) and by interpolation. Logits [B, 1, H, W]: depth is their sigmoid.

    Args:
        channels: of the feature maps.
        stride: pixels a side for which one place of the coarsest map but one stands.
        width: of the features before the last convolutions; 8 times as much after the maps are joined.
        deconvolutions: how many of the doublings are learned.
        inner: channels of those.
    """

    def __init__(
        self, channels: Sequence[int], stride: int, width: int, deconvolutions: int = 3, inner: int = 32
    ) -> None:
        super().__init__()
        self.stride = stride
        self.shrink = nn.ModuleList(
            _shrink(one, len(channels) - 2 - stage) for stage, one in enumerate(channels[: max(len(channels) - 2, 0)])
        )
        self.join = nn.Sequential(nn.Conv2d(sum(channels), 8 * width, 1), nn.GroupNorm(16, 8 * width), nn.ReLU())
        doublings: list[nn.Module] = []
        for into, out in pairwise([8 * width, *[inner] * deconvolutions]):
            doublings += [nn.ConvTranspose2d(into, out, 2, 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.deconvolve = nn.Sequential(*doublings)
        into = inner if deconvolutions else 8 * width
        self.decode = nn.Sequential(nn.Conv2d(into, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.rest = (stride >> deconvolutions).bit_length() - 1
        self.measure = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1)
        )  # fmt: skip
        self.measure[2].no_muon = True  # type: ignore[assignment]
        self._start()

    def _start(self) -> None:
        for part, std in ((self.shrink, 0.02), (self.join, 0.02), (self.deconvolve, 1e-3), (self.decode, 1e-3),
                          (self.measure, 1e-3)):  # fmt: skip
            for module in part.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.trunc_normal_(module.weight, std=std)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits of pictures of `size`; what the pyramid saw beyond it, to the right and below, is cut off."""
        *fine, coarsest = features
        if fine:
            *fine, middle = fine
            coarsest = torch.cat([middle, _to(coarsest, middle, "nearest")], dim=1)
        parts = [shrink(one) for shrink, one in zip(self.shrink, fine, strict=True)]
        joined = self.join(torch.cat([*parts, coarsest], dim=1))
        joined = joined[..., : size[0] // self.stride, : size[1] // self.stride]
        states = self.decode(self.deconvolve(joined))
        for _ in range(self.rest):
            states = F.interpolate(states, scale_factor=2, mode="bilinear", align_corners=False)
        return self.measure(states)


def _shrink(width: int, times: int) -> nn.Sequential:
    """So many halvings, with a norm between them."""
    layers: list[nn.Module] = []
    for number in range(times):
        layers += [nn.GroupNorm(16, width), nn.ReLU()] if number else []
        layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
    return nn.Sequential(*layers)
