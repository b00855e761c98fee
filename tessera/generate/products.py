"""Products with a fixed matrix in single precision, each by the kernel that was measured to be fastest for its size.

A step of generation reads every weight for a few rows, so that its time is that of reading memory. Published weights
have 16 bits; a matrix of such values is held in 16 bits too and read twice as fast, while each product and each sum
stays in single precision: the results are those of the same matrix in 32 bits. Legend: M rows, I inputs, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Multiply-adds up to which the plain product is the fastest: what the others spend before they begin is not made up
# for. Measured on a core with AVX-512, where the plain one (MKL) reaches half of the core's rate at most.
SMALL_FOR_HALF, SMALL_FOR_ONEDNN, SMALL_FOR_ONE_ROW = 2**18, 2**19, 2**20
HALF_MAX = torch.finfo(torch.float16).max
SMALLEST = 2.0**-100  # below it, powers of two leave float32


class FixedMatrix:
    """x [M, I] -> x @ matrix / unit [M, O], in float32.

    Attributes:
        unit: a power of two by which every result is to be multiplied, where that costs nothing: with the weights of
            a norm, or in a sum.
        before: [I], what x is to be multiplied with first; None where that is in the matrix.
    """

    def __init__(self, weight: Tensor, before: Tensor | None = None) -> None:
        """`weight` float32 [O, I], as linear layers have it, after `before` [I]; what is kept is a copy."""
        weight = weight.detach()
        self.outputs, self.inputs = weight.shape
        self.unit, self._packed, self._matrix = 1.0, None, weight[:0]
        on_cpu = weight.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        self._onednn = (
            _operator("mkldnn", "_linear_pointwise") if on_cpu and torch.backends.mkldnn.is_available() else None
        )
        self._half = _operator("quantized", "linear_dynamic_fp16") if on_cpu and _has_half_products() else None
        power = _power_for_half(weight)
        if self._half is not None and power is not None and weight.numel() > SMALL_FOR_HALF:
            self.unit = 2.0**-power
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight * 2.0**power, None)
            self.before = None if before is None else before * self.unit
        else:
            self.before, weight = None, weight if before is None else weight * before
            self._matrix = weight.t().contiguous()  # as products with few rows read it fastest

    @property
    def in_half(self) -> bool:
        """Whether it is held in 16 bits."""
        return self._packed is not None

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is not None and self._half is not None:
            return self._half(x, self._packed)
        if self._onednn is None or self._plain(x):
            return x.mm(self._matrix)
        return self._onednn(x, self._matrix.t(), None, "none", [], "")

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add x @ matrix to `total` [M, O], in place."""
        if self._packed is None and self._plain(x):
            total.addmm_(x, self._matrix)
        else:
            total.add_(self(x), alpha=self.unit)

    def _plain(self, x: Tensor) -> bool:
        rows, size = len(x), self.outputs * self.inputs
        return self._onednn is None or rows * size <= (SMALL_FOR_ONE_ROW if rows == 1 else SMALL_FOR_ONEDNN)


def _operator(library: str, name: str) -> Callable[..., Tensor] | None:
    """An operator that is no part of PyTorch's stable interface; None in a release without it."""
    return getattr(getattr(getattr(torch.ops, library), name, None), "default", None)


def _has_half_products() -> bool:
    """Whether PyTorch was built with FBGEMM and takes it."""
    return torch.backends.quantized.engine in ("fbgemm", "x86")


def _power_for_half(weight: Tensor) -> int | None:
    """The power of two with which every value of `weight` is one of float16; None where there is none."""
    largest = float(weight.abs().max())
    if not SMALLEST < largest < math.inf:
        return None
    power = math.floor(math.log2(HALF_MAX / largest))
    scaled = weight * 2.0**power
    return power if torch.equal(scaled.half().float(), scaled) else None
