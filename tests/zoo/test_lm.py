"""What the language model of the mini zoo reads: sketches in the place of pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from tessera.data.packing import collate_rows
from tessera.data.sample import Image, Sample, Text
from tessera.data.sequence import SequenceBuilder
from tessera.data.worlds import open_world
from tessera.data.worlds.scenes.draw import object_masks
from tessera.data.worlds.scenes.graph import SIZES, Scene, place_object
from tessera.errors import BadSample
from tessera.zoo import lm
from tessera.zoo.parts import load_tokenizer
from tessera.zoo.sketches import COVERED, NOTHING, PLACES, WORDS, foreseen, scene_of, sketch, sketches, word_ids


def _one(colour: str, shape: str, place: str) -> Scene:
    thing = place_object(np.random.default_rng(0), colour, shape, place, SIZES[1], "plain")
    return Scene((thing,), "grey", "light", seed=0)


def test_a_sketch_says_at_each_place_what_covers_it() -> None:
    told = sketch(_one("red", "star", "top left"))
    assert told.shape == (PLACES, len(WORDS)) and np.allclose(told.sum(axis=1), 1, atol=1e-6)
    assert {WORDS[i] for i in np.flatnonzero(told[0])} == {"red", "star", SIZES[1], "plain", "top", "left"}
    assert {WORDS[i] for i in np.flatnonzero(told[15])} == {NOTHING, "bottom", "right"}
    assert {WORDS[i] for i in np.flatnonzero(told[6])} >= {"top", "middle", "center", "right"}


def test_what_is_foreseen_says_where_a_thing_stands_and_which_quarters_it_covers() -> None:
    scene = _one("red", "square", "top left")
    told = foreseen(scene)
    assert told.shape == (PLACES, len(WORDS)) and np.allclose(told.sum(axis=1), 1, atol=1e-6)
    shares = object_masks(scene)[0].reshape(8, 8, 8, 8).mean(axis=(1, 3))  # of patches of 8 x 8 pixels
    quarters = told[:, -4:] / COVERED * 4
    np.testing.assert_allclose(quarters[0], shares[:2, :2].flatten(), atol=1e-6)
    np.testing.assert_allclose(quarters[5], shares[2:4, 2:4].flatten(), atol=1e-6)
    assert {WORDS[i] for i in np.flatnonzero(told[15])} == {NOTHING}
    beyond = foreseen(_one("red", "square", "center"))[5]  # a corner of the thing, whose own place is the middle
    assert beyond[WORDS.index("middle")] > 0 and beyond[WORDS.index("top")] == 0


def test_a_sketch_needs_no_drawing_and_no_other_picture_has_one() -> None:
    def refuse() -> None:
        raise AssertionError("the picture was drawn")

    image = open_world("scenes").source("pairs")[3].images[0]
    assert isinstance(scene_of(image), Scene) and sketches([image, image]).shape == (2, PLACES, len(WORDS))
    with pytest.raises(BadSample, match="only a picture of the scenes world"):
        scene_of(Image(refuse))  # type: ignore[arg-type]


def test_words_of_sketches_are_words_of_the_tokenizer() -> None:
    tokenizer = load_tokenizer("mini/tokenizer")
    ids = word_ids(tokenizer)
    assert [tokenizer.decode([index]).strip() for index in ids.tolist()] == list(WORDS)


@pytest.fixture(scope="module")
def reader() -> tuple[LlamaForCausalLM, lm.Reader, SequenceBuilder]:
    torch.manual_seed(0)
    tokenizer = load_tokenizer("mini/tokenizer")
    model = LlamaForCausalLM(lm.mini_config(tokenizer)).eval()
    return model, lm.Reader.of(tokenizer), SequenceBuilder(tokenizer, PLACES, lm.ROW_LENGTH)


def _batch(builder: SequenceBuilder, *samples: Sample):
    return collate_rows([[builder.build(sample)] for sample in samples], lm.ROW_LENGTH, 0)


def test_a_sketch_that_ends_its_sequence_is_learned_and_not_read(reader) -> None:
    model, read, builder = reader
    image = open_world("scenes").source("pairs")[3].images[0]
    other = open_world("scenes").source("pairs")[4].images[0]
    first, last = _batch(builder, Sample((image, Text("A star.")))), _batch(builder, Sample((Text("A star."), image)))
    slots = first.input_ids == read.place
    assert int(slots.sum()) == PLACES

    def embedded(batch, picture: Image) -> torch.Tensor:
        return read.embed(model, batch, sketches([picture]))

    assert not torch.equal(embedded(first, image), embedded(first, other))
    assert torch.equal(embedded(last, image), embedded(last, other))
    table = model.get_input_embeddings()
    assert torch.allclose(embedded(first, image)[slots], sketches([image])[0] @ table(read.words))
    terms = read(model, last)
    assert terms["sketches"][1] == PLACES and terms["words"][1] > 0


def test_rows_without_a_sketch_cost_what_their_words_cost(reader) -> None:
    model, read, builder = reader
    batch = _batch(builder, Sample((Text("A large star."),)))
    terms = read(model, batch)
    plain = model(batch.input_ids, labels=batch.labels).loss
    assert float(terms["words"][0]) / terms["words"][1] == pytest.approx(float(plain), abs=1e-5)
    assert terms["sketches"] == (0.0, 0)


def test_sketches_are_read_and_learned_under_bf16_autocast(reader) -> None:
    model, read, builder = reader
    image = open_world("scenes").source("pairs")[3].images[0]
    batch = _batch(builder, Sample((image, Text("A star."))))
    exact = read(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = read(model, batch)
    for name, (total, number) in exact.items():
        assert number == rounded[name][1]
        assert float(rounded[name][0].detach()) == pytest.approx(float(total.detach()), rel=0.02)


def test_training_reads_no_held_out_combination() -> None:
    from tessera.data.worlds.scenes.graph import is_heldout

    mixture = lm.sources("train")
    assert len(mixture.sources) == 8  # pairs, pages, names, and five kinds of instruction
    pages = mixture.sources[1]
    scenes = [scene_of(image) for index in range(30) for image in pages[index].images]
    assert scenes and not any(is_heldout(t.colour, t.shape, t.place) for scene in scenes for t in scene.objects)
