"""Encoder and decoder of VQGAN: residual convolutions that halve and double the picture, attention at the smallest size
(Esser et al. 2021, arXiv 2012.09841). They are those of diffusers, behind the interface of the transformers'.

Legend: B pictures of C channels and H x W pixels, h x w grid, N = h * w, W width of the states.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn


def _groups(widths: Sequence[int]) -> int:
    """Groups of the norms: 32 as published, or the most that all widths divide into."""
    return next(number for number in range(32, 0, -1) if all(width % number == 0 for width in widths))


class ConvEncoder(nn.Module):
    """Pictures [B, C, H, W] -> states [B, N, W], h = H / 2 ** (len(widths) - 1).

    Args:
        widths: channels at each size, the largest first.
        blocks: residual blocks at each size.
        out: W.
    """

    def __init__(self, widths: Sequence[int], blocks: int, out: int, channels: int = 3) -> None:
        super().__init__()
        self.net = Encoder(
            channels, out, ("DownEncoderBlock2D",) * len(widths), tuple(widths), blocks, _groups(widths),
            double_z=False,
        )  # fmt: skip

    def forward(self, pictures: Tensor) -> Tensor:
        return self.net(pictures).flatten(2).transpose(1, 2)


class ConvDecoder(nn.Module):
    """States [B, N, W] on a grid -> [B, out, H, W]; see `ConvEncoder`."""

    def __init__(self, widths: Sequence[int], blocks: int, width: int, out: int = 3) -> None:
        super().__init__()
        self.net = Decoder(
            width, out, ("UpDecoderBlock2D",) * len(widths), tuple(widths), blocks, _groups(widths)
        )  # fmt: skip

    def forward(self, states: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.net(states.transpose(1, 2).unflatten(2, grid))
