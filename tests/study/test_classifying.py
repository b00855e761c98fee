"""What studies of image encoders share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image as PIL

from tessera.data.images import Augment, Pixels
from tessera.data.sample import Image, pair
from tessera.evaluate.classification import hits
from tessera.models.classifier import ImageClassifier
from tessera.study.classifying import Lesson, Remembered, judge, learn
from tessera.vision.registry import create

CLASSES = ("dark", "light")
PIXELS = Pixels(16, (0.5,) * 3, (0.5,) * 3)


class Greys:
    """Pictures of one grey each; counts how often they are drawn."""

    name = "greys"

    def __init__(self, number: int) -> None:
        self.number, self.drawn = number, 0

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int, /):
        return pair(Image(lambda: self._draw(index)), CLASSES[index % 2], id=f"grey {index}")

    def _draw(self, index: int) -> PIL.Image:
        self.drawn += 1
        return PIL.new("RGB", (40, 24), (60 + 130 * (index % 2) + index,) * 3)

    def fingerprint(self) -> str:
        return f"greys {self.number}"


def tiny() -> ImageClassifier:
    fields = {
        "image_size": 16,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "splits": [[8, 8, 0]],
    }
    return ImageClassifier.over(create("t2t-vit-mini", **fields), CLASSES)


def test_a_remembered_picture_is_decoded_once_and_at_its_size():
    greys = Greys(3)
    kept = Remembered(greys, 16)
    first, again = kept[1], kept[1]
    assert greys.drawn == 1
    assert first is again
    assert first.images[0].pil().size == (16, 16)
    assert (first.text, first.id) == ("light", "grey 1")
    assert np.asarray(first.images[0].pil())[0, 0, 0] == 191
    assert (len(kept), kept.fingerprint()) == (3, greys.fingerprint())


def test_an_arm_is_judged_on_each_held_out_picture_and_leaves_nothing(tmp_path):
    lesson = Lesson(steps=3, batch=8)
    outcome = judge(tiny, Greys(16), Greys(9), PIXELS, lesson, key=["arm", {}], seed=0, work=tmp_path / "a")
    assert (outcome.steps, outcome.samples) == (3, 24)
    model, *_ = learn(tiny, Greys(16), PIXELS, lesson, seed=0, work=tmp_path / "b")
    assert list(outcome.items["accuracy"]) == hits(model, Greys(9), PIXELS).tolist()
    assert len(outcome.items["accuracy"]) == 9
    assert list((tmp_path / "a" / "training").iterdir()) == []
    assert not (tmp_path / "b").exists()


def test_weights_and_the_order_of_pictures_follow_from_the_seed(tmp_path):
    lesson = Lesson(steps=2, batch=4)

    def weights(seed: int, name: str) -> torch.Tensor:
        pixels = Pixels(16, PIXELS.mean, PIXELS.std, Augment(crop=0.5))
        return learn(tiny, Greys(16), pixels, lesson, seed=seed, work=tmp_path / name)[0].head.weight

    assert torch.equal(weights(1, "a"), weights(1, "b"))
    assert not torch.equal(weights(1, "a"), weights(2, "a"))


def test_a_stopped_training_goes_on_and_ends_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    lesson = Lesson(steps=4, batch=4)
    whole = learn(tiny, Greys(16), PIXELS, lesson, seed=0, work=tmp_path / "whole")
    made = []

    def failing() -> ImageClassifier:
        model = tiny()
        forward, made[:] = model.forward, [0]

        def stops(*given, **named):
            made[0] += 1
            if made[0] == 3:
                raise KeyboardInterrupt
            return forward(*given, **named)

        model.forward = stops
        return model

    with pytest.raises(KeyboardInterrupt):
        learn(failing, Greys(16), PIXELS, lesson, seed=0, work=tmp_path / "cut")
    again = learn(tiny, Greys(16), PIXELS, lesson, seed=0, work=tmp_path / "cut")
    assert torch.equal(again[0].head.weight, whole[0].head.weight)
    assert again[1:] == whole[1:] == (4, 16)
    assert not (tmp_path / "cut").exists()
