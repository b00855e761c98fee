"""A codebook: each vector becomes the code nearest to it.

The choices of VQ-VAE (van den Oord et al. 2017), VQGAN (Esser et al. 2021) and ViT-VQGAN (Yu et al. 2022) are options
of one module, and so are the random restarts of Jukebox (Dhariwal et al. 2020, section 3.1):

    Quantiser(256, 1024, normalise=False, init="uniform")   VQGAN: looked up as they are
    Quantiser(768, 8192, code_width=32)                     ViT-VQGAN: factorised, and of length 1
    Quantiser(256, 512, normalise=False, update="ema")      VQ-VAE-2: codes follow the mean of what they stand for
    Quantiser(768, 512, code_width=8, restart=10)           codes that nobody chooses move to where vectors are

Legend: B pictures, N vectors each of width C, K codes of width D.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 2**15  # vectors that are compared with all codes at once: 1 GiB of scores for 8192 codes
_SEEN = 1e-5  # below this running count a code has nothing to follow and stays


class Quantised(NamedTuple):
    """What a quantiser makes of vectors.

    Attributes:
        states: [B, N, C'], what the decoder reads.
        ids: int64 [B, N].
        codebook: mean squared distance of the codes to the vectors, which moves codes; 0 where codes follow a mean.
        commitment: the same distance, which moves vectors.
    """

    states: Tensor
    ids: Tensor
    codebook: Tensor
    commitment: Tensor


class Quantiser(nn.Module):
    """Vectors [B, N, C] -> nearest codes, straight through: the gradient passes as if nothing had happened.

    Args:
        width: C.
        codes: K.
        code_width: D of a factorised codebook: a linear layer goes before the look-up and one after it. None looks
            the vectors up as they are, without either layer.
        out_width: C', by default C; other than C it needs a `code_width`.
        normalise: vectors and codes have length 1 wherever they are compared, and the decoder reads codes of length 1.
        update: "loss" moves the codes by the codebook loss; "ema" to the running mean of the vectors that chose them.
        decay: of that running mean.
        init: codes from N(0, 1), or "uniform" within 1 / K as VQGAN's.
        restart: batches of training that a code may go unchosen before it is put where a vector of the batch lies; 0
            leaves codes where they are. A short training needs it: vectors agree on a few codes within its first steps,
            and the codebook's loss moves those alone.

    Raises:
        ValueError: another `out_width` without a `code_width`.
    """

    sizes: Tensor
    sums: Tensor
    idle: Tensor

    def __init__(
        self, width: int, codes: int, code_width: int | None = None, *, out_width: int | None = None,
        normalise: bool = True, update: Literal["loss", "ema"] = "loss", decay: float = 0.99,
        init: Literal["normal", "uniform"] = "normal", restart: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        out_width = width if out_width is None else out_width
        if code_width is None and out_width != width:
            raise ValueError(f"vectors of {width} channels do not become {out_width} without a code_width")
        self.normalise, self.update, self.decay, self.init, self.restart = normalise, update, decay, init, restart
        inner = width if code_width is None else code_width
        self.codes = nn.Embedding(codes, inner)
        self.before = nn.Identity() if code_width is None else nn.Linear(width, inner)
        self.after = nn.Identity() if code_width is None else nn.Linear(inner, out_width)
        self.reset_codes()
        if update == "ema":
            self.codes.weight.requires_grad_(False)
            self.register_buffer("sizes", torch.ones(codes))
            self.register_buffer("sums", self.codes.weight.detach().clone())
        if restart:
            self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64))  # batches since a code was chosen

    @torch.no_grad()
    def reset_codes(self) -> None:
        """Draw the codes anew."""
        if self.init == "uniform":
            self.codes.weight.uniform_(-1 / self.codes.num_embeddings, 1 / self.codes.num_embeddings)
        else:
            self.codes.weight.normal_()
        if hasattr(self, "sums"):
            self.sums.copy_(self.codes.weight)

    @property
    def writes_codes(self) -> bool:
        """Whether training writes into the codes beside the optimiser, which sharding would lose."""
        return self.update == "ema" or self.restart > 0

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x.float(), dim=-1) if self.normalise else x.float()

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Places int64 [...] of the codes nearest to vectors [..., D], which need not have length 1."""
        table = self._unit(self.codes.weight)
        lengths = table.square().sum(1)
        parts = self._unit(vectors).flatten(0, -2).split(ROWS)
        # |v - e|^2 without |v|^2, which all codes share
        found = [torch.addmm(lengths, part, table.T, alpha=-2).argmin(1) for part in parts]
        return torch.cat(found).view(vectors.shape[:-1])

    def embed(self, ids: Tensor) -> Tensor:
        """The codes at `ids` int [...] as the decoder's projection reads them, [..., D]."""
        return self._unit(self.codes(ids))

    def read(self, embeds: Tensor) -> Tensor:
        """What the decoder reads of codes [..., D], [..., C']."""
        return self.after(embeds)

    def forward(self, states: Tensor) -> Quantised:
        """Vectors [B, N, C], compared in float32. In training codes follow ("ema"), and idle ones move."""
        before = self.before(states)
        with torch.autocast(states.device.type, enabled=False):
            vectors = self._unit(before)
            ids = self.nearest(vectors)
            codes = self.embed(ids)
            commitment = F.mse_loss(vectors, codes.detach())
            if self.update == "ema":
                codebook = torch.zeros_like(commitment)
                if self.training:
                    self._follow(vectors.detach().flatten(0, -2), ids.flatten())
                codes = codes.detach()
            else:
                codebook = F.mse_loss(codes, vectors.detach())
            through = vectors + (codes - vectors).detach()
            if self.training and self.restart:
                self._revive(vectors.detach().flatten(0, -2), ids.flatten())
        return Quantised(self.read(through), ids, codebook, commitment)

    @torch.no_grad()
    def _follow(self, vectors: Tensor, ids: Tensor) -> None:
        """Move each code to the running mean of vectors [n, D] that chose it, of all processes together."""
        sizes = torch.zeros_like(self.sizes).index_add_(0, ids, torch.ones_like(vectors[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, ids, vectors)
        if _together():
            torch.distributed.all_reduce(sizes)
            torch.distributed.all_reduce(sums)
        self.sizes.lerp_(sizes, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        seen = self.sizes[:, None] > _SEEN
        means = self.sums / self.sizes[:, None].clamp(min=_SEEN)
        self.codes.weight.copy_(torch.where(seen, means, self.codes.weight))

    @torch.no_grad()
    def _revive(self, vectors: Tensor, ids: Tensor) -> None:
        """Put each code that no process chose for `restart` batches where one of the vectors [n, D] lies."""
        chosen = torch.bincount(ids, minlength=len(self.idle))
        found = vectors[torch.randint(len(vectors), (len(self.idle),), device=vectors.device)]
        if _together():
            torch.distributed.all_reduce(chosen)
            torch.distributed.broadcast(found, src=0)
        self.idle.add_(1).masked_fill_(chosen > 0, 0)
        dead = self.idle >= self.restart
        if self.normalise:  # as long as other codes are, so that one step of the optimiser turns it no further
            found = found * self.codes.weight.norm(dim=1).mean()
        self.codes.weight.copy_(torch.where(dead[:, None], found, self.codes.weight))
        if self.update == "ema":
            self.sizes.masked_fill_(dead, 1.0)
            self.sums.copy_(torch.where(dead[:, None], found, self.sums))
        self.idle.masked_fill_(dead, 0)


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
