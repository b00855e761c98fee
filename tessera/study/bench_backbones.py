"""Races of the image encoders: CvT-13 against transformers' CvtModel with the same weights and the same GELU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CvtConfig, CvtModel

from tessera.study.bench import Race
from tessera.study.counting import macs
from tessera.vision.cvt import CvT
from tessera.vision.cvt_published import from_config, from_published

LEAST, AIM = 0.9, 1.5
SIDE = 224
TRAINING = 3  # a training step is counted as three forward passes


@dataclass(frozen=True)
class Pair:
    """Both models with the same weights, on a device; on a GPU they compute in bfloat16 by autocast."""

    ours: CvT
    theirs: CvtModel
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """In which matrices are multiplied."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def forward(self, pictures: Tensor) -> Race:
        """Features for inference: ours with its norms folded."""
        folded, theirs = self.ours.folded(), self.theirs.eval()

        def look(model: nn.Module) -> Callable[[], object]:
            def run() -> object:
                with torch.no_grad(), self._autocast():
                    return model(pictures)

            return run

        return self._race("forward", pictures, look(folded), look(theirs), 1)

    def step(self, pictures: Tensor) -> Race:
        """Forward and backward pass and the update."""

        def learn(model: nn.Module, vector: Callable[[], Tensor]) -> Callable[[], object]:
            optimiser = torch.optim.AdamW(model.train().parameters(), lr=1e-6, fused=True)

            def run() -> None:
                with self._autocast():
                    loss = vector().float().square().mean()
                loss.backward()
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)

            return run

        mine = learn(self.ours, lambda: self.ours(pictures).pooled)
        their = learn(self.theirs, lambda: self.theirs(pictures).cls_token_value)
        return self._race("training step", pictures, mine, their, TRAINING)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _race(
        self, what: str, pictures: Tensor, ours: Callable[[], object], theirs: Callable[[], object], passes: int
    ) -> Race:
        with torch.device("meta"):
            cost = macs(CvT(self.ours.config), {"pixel_values": torch.empty(1, *pictures.shape[1:])})
        return Race(
            name=f"cvt-13 {what}, {len(pictures)} x {SIDE}", peer="transformers CvtModel", ours=ours, theirs=theirs,
            macs=float(cost * len(pictures) * passes), dtype=self.dtype, least=LEAST, aim=AIM,
        )  # fmt: skip


def cvt_pair(device: torch.device, config: CvtConfig | None = None) -> Pair:
    """The two with the same random weights and without drop path, so that they compute the same."""
    theirs = CvtModel(config or CvtConfig(drop_path_rate=(0.0, 0.0, 0.0)))
    ours = CvT(from_config(theirs.config))
    ours.load_state_dict(
        from_published(theirs.state_dict()), strict=False
    )  # all but the last norm, which only ours has
    for model in (ours, theirs):
        nn.Module.to(model, device)  # as model.to, whose own types a checker cannot follow
    return Pair(ours, theirs, device)


def races(device: torch.device) -> Iterator[Race]:
    """Forward of one picture and of a batch, and a training step."""
    pair = cvt_pair(device)
    batch = 64 if device.type == "cuda" else 4
    one, several = (torch.randn(size, 3, SIDE, SIDE, device=device) for size in (1, batch))
    yield pair.forward(one)
    yield pair.forward(several)
    yield pair.step(several)
