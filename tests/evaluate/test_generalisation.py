"""Base and novel classes, their harmonic mean, and that each set is judged among its own names."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tessera.data.images import Pixels
from tessera.data.sample import Sample, pair
from tessera.errors import UserError
from tessera.evaluate.generalisation import Part, base_and_novel, harmonic_mean, transfer

PUBLISHED = {  # base, novel and their harmonic mean over 11 data sets, as the official repository prints them
    "CLIP": (69.34, 74.22, 71.70),
    "CoOp": (82.69, 63.22, 71.66),
    "CoCoOp": (80.47, 71.69, 75.83),
    "deep vision prompting": (80.24, 73.43, 76.68),
    "deep language prompting": (81.72, 73.81, 77.56),
    "independent V-L prompting": (82.15, 74.07, 77.90),
    "MaPLe": (82.28, 75.14, 78.55),
}


class World:
    """Three grey pictures of each class; the held-out one is the brightest."""

    name, tasks, classes = "greys", ("classes",), ("a", "b", "c", "d", "e")

    def source(self, task: str, split: str = "train") -> Any:
        return Greys(split)


class Greys:
    """One split of them."""

    def __init__(self, split: str) -> None:
        self.name, self.each, self.start = split, 2 if split == "train" else 1, 0 if split == "train" else 2

    def __len__(self) -> int:
        return self.each * len(World.classes)

    def __getitem__(self, index: int, /) -> Sample:
        label = World.classes[index // self.each]
        value = 40 * World.classes.index(label) + self.start + index % self.each
        return pair(np.full((4, 4, 3), value, np.uint8), label, id=f"{self.name}/{index}")

    def fingerprint(self) -> str:
        return self.name


class Nearest:
    """Names a picture by its grey, as the class in that place of the alphabet or the nearest that it may say."""

    training, device, dtype = False, torch.device("cpu"), torch.float32

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def renamed(self, classes: Sequence[str]) -> Nearest:
        return Nearest(classes)

    def __call__(self, pixel_values: torch.Tensor) -> Any:
        greys = pixel_values.mean((1, 2, 3))[:, None] * 255
        wanted = torch.tensor([40.0 * World.classes.index(name) for name in self.classes])
        return SimpleNamespace(logits=-(greys - wanted).abs())


PIXELS = Pixels(4, (0.0,) * 3, (1.0,) * 3)


def test_the_base_half_comes_first_by_name_and_has_the_odd_class() -> None:
    assert base_and_novel(["owl", "ant", "cat", "bee", "dog"]) == (("ant", "bee", "cat"), ("dog", "owl"))
    with pytest.raises(UserError, match="2 classes cannot be halved"):
        base_and_novel(["a", "b"])


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_harmonic_mean_of_the_published_averages_is_the_published_one(method: str) -> None:
    base, novel, mean = PUBLISHED[method]
    assert harmonic_mean(base, novel) == pytest.approx(mean, abs=0.006)
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_a_part_holds_the_pictures_of_its_classes_in_both_splits() -> None:
    part = Part(World(), ("b", "e"))  # type: ignore[arg-type]
    assert [sample.text for sample in (part.source("classes")[i] for i in range(4))] == ["b", "b", "e", "e"]
    assert len(part.source("classes", "heldout")) == 2
    other = Part(World(), ("a", "e"))  # type: ignore[arg-type]
    assert part.source("classes").fingerprint() != other.source("classes").fingerprint()


def test_each_set_is_judged_among_its_own_names_alone() -> None:
    world: Any = World()
    sets = {"all": world, "apart": Part(world, ("a", "e")), "near": Part(world, ("d", "e"))}
    found = transfer(Nearest(["a", "b"]), sets, PIXELS)
    assert {name: hits.tolist() for name, hits in found.items()} == {"all": [1.0] * 5, "apart": [1, 1], "near": [1, 1]}
    with pytest.raises(UserError, match="has no held-out picture"):
        transfer(Nearest(["a"]), {"none": Part(world, ("z",))}, PIXELS)
