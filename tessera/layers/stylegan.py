"""The discriminator of StyleGAN2: how real a picture is, as one number (Karras et al. 2020, arXiv 1912.04958).

Legend: B pictures of C channels and S x S pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.errors import UserError

_GAIN = math.sqrt(2)  # gives the spread back that a leaky rectifier takes
_BLUR = (1.0, 3.0, 3.0, 1.0)
GROUP = 4  # pictures that are compared with each other
LAST = 4  # pixels a side of the last map


def _rectify(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2) * _GAIN


class EqualLinear(nn.Linear):
    """A linear layer whose weights have spread 1 and are scaled when they are used, so that all learn at one pace
    (Karras et al. 2018, section 4.1)."""

    no_muon = True

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.in_features**-0.5, self.bias)


class EqualConv2d(nn.Conv2d):
    """A convolution in the same manner, without change of size at stride 1."""

    no_muon = True

    def __init__(self, channels: int, out: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(channels, out, kernel, padding=kernel // 2, bias=bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight[0].numel() ** -0.5
        return F.conv2d(x, self.weight * scale, self.bias, padding=self.padding)


def halve(x: Tensor) -> Tensor:
    """[B, C, S, S] -> [B, C, S / 2, S / 2], blurred by (1, 3, 3, 1) each way before every second pixel is taken."""
    row = torch.tensor(_BLUR, dtype=x.dtype, device=x.device) / sum(_BLUR)
    kernel = (row[:, None] * row).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), kernel, stride=2, groups=x.shape[1])


class _Residual(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.first = EqualConv2d(channels, channels, 3)
        self.second = EqualConv2d(channels, out, 3)
        self.skip = EqualConv2d(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = halve(_rectify(self.second(_rectify(self.first(x)))))
        return (new + self.skip(halve(x))) / _GAIN


def spread(x: Tensor) -> Tensor:
    """One more channel [B, C + 1, S, S]: how much pictures of a group of up to GROUP differ, on average, which tells a
    generator that draws one and the same from one that does not (Karras et al. 2018, section 3)."""
    batch = len(x)
    group = next(size for size in range(min(GROUP, batch), 0, -1) if batch % size == 0)
    parts = x.float().view(group, -1, *x.shape[1:])
    value = (parts.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return torch.cat([x, value.to(x.dtype).repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)


class Discriminator(nn.Module):
    """Pictures [B, C, S, S] -> scores [B], high for real ones. Computed in float32.

    Args:
        size: S, a power of 2 of 8 or more.
        channels: of the widest maps, 512 as published; halved from 64 pixels a side upwards at every doubling.

    Raises:
        UserError: a size that is no power of 2.
    """

    def __init__(self, size: int, channels: int = 512, picture_channels: int = 3) -> None:
        super().__init__()
        if size < 2 * LAST or size & (size - 1):
            raise UserError(f"a discriminator looks at pictures of 8, 16, 32, 64 ... pixels a side, not {size}")
        sides = [size >> place for place in range(int(math.log2(size // LAST)) + 1)]
        widths = [max(1, min(channels, channels * 64 // side)) for side in sides]
        self.entry = EqualConv2d(picture_channels, widths[0], 1)
        self.blocks = nn.Sequential(*(_Residual(*pair) for pair in zip(widths, widths[1:], strict=False)))
        self.last = EqualConv2d(widths[-1] + 1, widths[-1], 3)
        self.hidden = EqualLinear(widths[-1] * LAST * LAST, widths[-1])
        self.score = EqualLinear(widths[-1], 1)

    def forward(self, pictures: Tensor) -> Tensor:
        with torch.autocast(pictures.device.type, enabled=False):
            x = self.blocks(_rectify(self.entry(pictures.float())))
            x = _rectify(self.last(spread(x)))
            return self.score(_rectify(self.hidden(x.flatten(1))))[:, 0]
