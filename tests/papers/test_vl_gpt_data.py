"""What VL-GPT's stages read."""

from __future__ import annotations

from tessera.data.sequence import PLACE
from tessera.data.worlds import open_world
from tessera.papers.vl_gpt_data import Streams
from tessera.zoo.parts import load_tokenizer


def test_drawings_are_pictures_that_are_all_learned_and_follow_words_that_are_not():
    tokenizer = load_tokenizer("mini/lm")
    streams = Streams([(open_world("scenes"), 1.0)], tokenizer, 16)
    batches = list(streams.drawings(30, 2, 256))
    batch = batches[0]
    slots = batch.input_ids == tokenizer.get_vocab()[PLACE]
    assert len(batch.images) * 16 == int(slots.sum()) > 16
    assert bool(batch.visual_target[slots].all())
    firsts = slots & ~slots.roll(1, 1)
    places = batch.position_ids[firsts]
    assert int(places.min()) > 8  # a request stands before each
    known = next(iter(streams.captioned(30)))["images"]  # each of stage A's first pictures, once
    assert sorted(image.key for image in known) == sorted(key for each in batches for key in each.image_keys)
