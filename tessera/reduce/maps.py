"""Linear maps over tokens, each applied in the cheapest way that its form allows.

Legend: B batch, N tokens in, M tokens out, C width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Without autocast, for what it must not touch: similarities divided by small temperatures, counts, transforms."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, N, C] at index [B, M], as [B, M, C]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def positions(x: Tensor) -> Tensor:
    """0 to N - 1 for each example of x [B, N, ...], as [B, N]."""
    return torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)


class Map(ABC):
    """Y = A X, tokens [B, N, C] -> [B, M, C]."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(B, M, N)."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it is."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A X of x [B, N, C], [B, M, C] in the type of x."""

    @abstractmethod
    def back(self, y: Tensor) -> Tensor:
        """A^T Y of y [B, M, C], [B, N, C]."""

    def matrix(self) -> Tensor:
        """A itself, float32 [B, M, N]."""
        batch, _, sources = self.shape
        return self(torch.eye(sources, device=self.device).expand(batch, -1, -1))


@dataclass(frozen=True)
class Dense(Map):
    """Any matrix [B, M, N]."""

    weights: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, M, N)."""
        batch, outputs, sources = self.weights.shape
        return batch, outputs, sources

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.weights.device

    def __call__(self, x: Tensor) -> Tensor:
        return torch.bmm(self.weights.to(x.dtype), x)

    def back(self, y: Tensor) -> Tensor:
        """A^T Y."""
        return torch.bmm(self.weights.to(y.dtype).transpose(1, 2), y)


@dataclass(frozen=True)
class Pick(Map):
    """One-hot rows: output i is token index[b, i], with index [B, M] of `sources` tokens."""

    index: Tensor
    sources: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, M, N)."""
        return self.index.shape[0], self.index.shape[1], self.sources

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.index.device

    def __call__(self, x: Tensor) -> Tensor:
        return take(x, self.index)

    def back(self, y: Tensor) -> Tensor:
        """Each token at its place, zeros where none was picked."""
        empty = y.new_zeros(y.shape[0], self.sources, y.shape[2])
        return empty.scatter_add(1, self.index[..., None].expand_as(y), y)


@dataclass(frozen=True)
class Groups(Map):
    """One non-zero a column: token j goes to output index[b, j], times weights[b, j]; both [B, N]."""

    index: Tensor
    weights: Tensor
    outputs: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, M, N)."""
        return self.index.shape[0], self.outputs, self.index.shape[1]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.index.device

    @classmethod
    def means(cls, index: Tensor, sizes: Tensor, outputs: int) -> Groups:
        """Means of the tokens of each group, weighted by sizes [B, N]."""
        sums = sizes.new_zeros(sizes.shape[0], outputs).scatter_add(1, index, sizes)
        return cls(index, sizes / sums.gather(1, index), outputs)

    @classmethod
    def sums(cls, index: Tensor, outputs: int) -> Groups:
        """Sums over each group: the membership itself."""
        return cls(index, torch.ones(index.shape, device=index.device), outputs)

    def __call__(self, x: Tensor) -> Tensor:
        empty = x.new_zeros(x.shape[0], self.outputs, x.shape[2])
        return empty.scatter_add(1, self.index[..., None].expand_as(x), x * self.weights[..., None].to(x.dtype))

    def back(self, y: Tensor) -> Tensor:
        """Each token reads the output that it went to."""
        return take(y, self.index) * self.weights[..., None].to(y.dtype)


@dataclass(frozen=True)
class Stacked(Map):
    """The outputs of one map after those of another."""

    first: Map
    second: Map

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, M, N)."""
        batch, outputs, sources = self.first.shape
        return batch, outputs + self.second.shape[1], sources

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.first.device

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], 1)

    def back(self, y: Tensor) -> Tensor:
        """A^T Y."""
        cut = self.first.shape[1]
        return self.first.back(y[:, :cut]) + self.second.back(y[:, cut:])


@dataclass(frozen=True)
class Separable(Map):
    """Rows of a grid by one matrix [h', h], its columns by another [w', w], the same for all `batch` examples; computed
    in fp32 at least, as a transform with negative lobes loses what half precision cuts off."""

    down: Tensor
    across: Tensor
    batch: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, M, N)."""
        (rows, height), (columns, width) = self.down.shape, self.across.shape
        return self.batch, rows * columns, height * width

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.down.device

    def __call__(self, x: Tensor) -> Tensor:
        return _on_grid(x, self.down, self.across)

    def back(self, y: Tensor) -> Tensor:
        """A^T Y."""
        return _on_grid(y, self.down.T, self.across.T)


def _on_grid(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """x [B, h * w, C] with both sides mapped, [B, h' * w', C]: h'hw + h'w'w multiply-adds a channel."""
    batch, _, width = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    with full_precision(x.device):
        rows = down.to(dtype) @ x.to(dtype).reshape(batch, down.shape[1], -1)  # [B, h', w * C]
        whole = across.to(dtype) @ rows.reshape(batch * down.shape[0], across.shape[1], width)
    return whole.reshape(batch, -1, width).to(x.dtype)
