"""The stage of a classifier: what its batches hold, and that it learns, in all its forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.data.images import Augment, Pixels
from tessera.data.sample import Image, pair
from tessera.errors import DataError
from tessera.evaluate.classification import hits, probabilities
from tessera.models.classifier import ImageClassifier
from tessera.objectives.classification import Mixing
from tessera.train.classification import classification_stage, picture_loader
from tessera.train.engine import Trainer
from tessera.train.optim import Optimiser
from tessera.vision.registry import create

CLASSES = ("blue", "green", "red")
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


class Colours:
    """Plain pictures of three colours in many brightnesses."""

    name = "colours"

    def __init__(self, count, name=None):
        self.count, self.called = count, name

    def __len__(self):
        return self.count

    def __getitem__(self, index, /):
        pixels = np.zeros((20, 24, 3), np.uint8)
        pixels[..., 2 - index % 3] = 100 + index
        return pair(Image(pixels), self.called or CLASSES[index % 3], id=str(index))

    def fingerprint(self):
        return f"colours {self.count}"


def classifier(**changes):
    return ImageClassifier.over(create("vit-mini", **TINY, **changes), CLASSES)


def test_a_batch_holds_pictures_places_of_their_classes_and_ids():
    loader = picture_loader(Colours(12), CLASSES, Pixels(16), 6, seed=1)
    batch = next(iter(loader))
    assert batch["pixel_values"].shape == (6, 3, 16, 16)
    assert [int(name) % 3 for name in batch["sample_ids"]] == batch["labels"].tolist()


def test_a_class_that_the_model_does_not_have_stops_with_its_name():
    with pytest.raises(DataError, match="the class 'pink' is not one of the model's"):
        next(iter(picture_loader(Colours(12, "pink"), CLASSES, Pixels(16), 6)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixing": Mixing(), "smoothing": 0.0, "accumulate": 2},
        {"average": 0.5, "optimiser": Optimiser(kind="muon")},
    ],
)
def test_it_learns_what_it_is_shown(options, tmp_path):
    pixels = Pixels(16, augment=Augment(0.8, flip=0.5))
    torch.manual_seed(0)
    model = classifier(drop_path=0.1)
    loader = picture_loader(Colours(60), CLASSES, pixels, 12)
    options = {"optimiser": Optimiser(lr=1e-2)} | options
    Trainer(tmp_path, precision="fp32").run([classification_stage(model, loader, 30, **options)])
    model.eval()
    right = hits(model, Colours(30), Pixels(16))
    assert right.shape == (30,) and right.mean() == 1.0


def test_the_same_seed_gives_the_same_mixtures_and_weights(tmp_path):
    found = []
    for name in ("one", "two"):
        torch.manual_seed(0)
        model = classifier(drop_path=0.2)
        loader = picture_loader(Colours(12), CLASSES, Pixels(16), 6)
        trainer = Trainer(tmp_path / name, precision="fp32", seed=3)
        trainer.run([classification_stage(model, loader, 3, mixing=Mixing())])
        found.append(model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_probabilities_do_not_depend_on_how_many_pictures_are_looked_at_together(monkeypatch):
    model = classifier().eval()
    images = [Colours(9)[place].images[0].pil() for place in range(9)]
    together = probabilities(model, images, Pixels(16))
    monkeypatch.setattr("tessera.evaluate.classification.BATCH", 2)
    torch.testing.assert_close(probabilities(model, images, Pixels(16)), together)
    torch.testing.assert_close(together.sum(1), torch.ones(9))
    assert probabilities(model, [], Pixels(16)).shape == (0, 3)
