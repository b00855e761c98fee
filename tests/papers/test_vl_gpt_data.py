"""What VL-GPT's stages read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from tessera.data.sequence import PLACE
from tessera.data.tasks import draw
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
    keys = [image.key for each in batches for image in each.images]
    assert len(keys) == len(set(keys)) == 30 and any("/drawings/" in key for key in keys)


def test_a_world_without_drawings_has_its_captioned_pictures_asked_for(tmp_path):
    for index in range(8):
        Image.new("RGB", (64, 64), (30 * index, 0, 0)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"red number {index}")
    streams = Streams([(open_world(str(tmp_path)), 1.0)], load_tokenizer("mini/lm"), 16)
    batch = next(iter(streams.drawings(4, 2, 256)))
    assert len(batch.images) == 4


def test_every_second_drawing_is_asked_for_in_the_canonical_sentence_and_the_others_in_the_caption_s_own():
    pairs = (open_world("scenes").source("pairs")[index] for index in range(400))
    asked = []
    for sample in (pair for pair in pairs if pair.meta["canonical"] != pair.text):
        request = draw(sample, np.random.default_rng(len(asked))).segments[0].text
        asked.append(sample.meta["canonical"] in request)
        assert asked[-1] or sample.text in request
    assert 0.4 < np.mean(asked) < 0.6 and len(asked) > 200
    plain = replace(sample, meta={})
    assert all(sample.text in draw(plain, np.random.default_rng(seed)).segments[0].text for seed in range(10))
