"""Captions without their pictures, and what a blind model thought of each word, kept under a hash of the tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tessera.data.blind import BlindBuilder, ScoredPacker, Scores, key
from tessera.data.conversation import LLAVA, ConversationBuilder
from tessera.data.loader import Loader
from tessera.data.packing import Packer, collate_rows
from tessera.data.sample import Image, Sample, Text, question
from tessera.data.sequence import IGNORED, SequenceBuilder
from tessera.errors import CheckpointError, DataError
from tests.data.tiny import Numbered, tokenizer

SHOWN = Image(np.zeros((4, 4, 3), np.uint8))


def conversing(positions: int = 4) -> ConversationBuilder:
    return ConversationBuilder(tokenizer(), positions, 128, chat_template=LLAVA)


@pytest.fixture(scope="module")
def blind() -> BlindBuilder:
    return BlindBuilder(SequenceBuilder(tokenizer(), 4, 128))


def scored(builder: BlindBuilder, count: int) -> Scores:
    """Of the learned words of `Numbered`, falling from 0.9."""
    rows = {}
    for place in range(count):
        built = builder.build(Numbered(count)[place])
        learned = int((built.labels != IGNORED).sum())
        rows[key(built.input_ids, built.labels)] = np.linspace(0.9, 0.1, learned).astype(np.float16)
    return Scores(rows)


def test_the_words_are_those_that_the_model_with_eyes_reads_with_the_same_before_them() -> None:
    asked = question(SHOWN, "what is at the left", "a red circle")
    built, unseen = conversing().build(asked), BlindBuilder(conversing()).build(asked)
    place = conversing().place_id
    assert (built.input_ids == place).sum() == 4
    assert place not in unseen.input_ids
    assert unseen.input_ids.tolist() == [index for index in built.input_ids.tolist() if index != place]
    learned = built.input_ids[built.labels != IGNORED]
    assert unseen.input_ids[unseen.labels != IGNORED].tolist() == learned.tolist()
    assert not unseen.images


def test_a_picture_s_number_of_places_does_not_change_the_hash_and_every_token_and_label_does() -> None:
    asked = question(SHOWN, "what is it", "a red circle")
    few, many = (BlindBuilder(conversing(positions)).build(asked) for positions in (1, 9))
    assert key(few.input_ids, few.labels) == key(many.input_ids, many.labels)
    other, learned = few.input_ids.copy(), few.labels.copy()
    other[3] += 1
    learned[1] = few.input_ids[1]
    assert len({key(few.input_ids, few.labels), key(other, few.labels), key(few.input_ids, learned)}) == 3


@pytest.mark.light("prior", "exact")
def test_packed_rows_carry_one_value_for_each_learned_word_at_its_own_place(blind: BlindBuilder) -> None:
    scores = scored(blind, 12)
    packer = ScoredPacker(Packer(blind.builder, 2, 96, window=12), scores)  # type: ignore[arg-type]
    batch = next(iter(Loader(Numbered(12), packer)))
    assert int(batch.segment_ids.max()) > 1
    assert batch.blind is not None and batch.blind.dtype == torch.float32
    assert torch.equal(batch.blind > 0, batch.labels != IGNORED)
    for row, names in enumerate(batch.sample_ids):
        for number, name in enumerate(names, start=1):
            own = (batch.segment_ids[row] == number) & (batch.labels[row] != IGNORED)
            expected = scores.of(blind.build(Numbered(12)[int(name)]))
            assert batch.blind[row][own].tolist() == expected.astype(np.float32).tolist()
    assert batch.to("cpu").blind is not None


@pytest.mark.light("prior", "use")
def test_tokens_that_were_not_scored_end_the_training_with_the_sample_s_name(blind: BlindBuilder) -> None:
    packer = ScoredPacker(Packer(blind.builder, 1, 96, window=4), scored(blind, 4))  # type: ignore[arg-type]
    other = Numbered(5)
    with pytest.raises(DataError, match="tokens of sample '[0-9]' are not those that the text-only reference scored"):
        loader = iter(Loader(other, packer))
        for _ in range(10):
            next(loader)


def test_shuffled_values_are_the_same_ones_of_each_caption_in_another_order(blind: BlindBuilder) -> None:
    scores = scored(blind, 9)
    mixed, again, other = scores.shuffled(1), scores.shuffled(1), scores.shuffled(2)
    for name, row in scores.rows.items():
        assert sorted(row) == sorted(mixed.rows[name])
        assert mixed.rows[name].tolist() == again.rows[name].tolist()
    assert len({scores.fingerprint(), mixed.fingerprint(), other.fingerprint()}) == 3


def test_values_come_back_from_their_file_as_they_were(blind: BlindBuilder, tmp_path: Path) -> None:
    scores = scored(blind, 9)
    scores.save(tmp_path / "scores.safetensors")
    found = Scores.load(tmp_path / "scores.safetensors")
    assert found.fingerprint() == scores.fingerprint()
    assert {row.dtype for row in found.rows.values()} == {np.dtype(np.float16)}


@pytest.mark.parametrize("case", ["missing", "damaged", "other", "short"])
def test_a_file_that_holds_no_values_is_named(case: str, blind: BlindBuilder, tmp_path: Path) -> None:
    file = tmp_path / "scores.safetensors"
    if case == "damaged":
        file.write_bytes(b"\x00" * 20)
    if case == "other":
        save_file({"weights": np.zeros(3)}, file)
    if case == "short":
        keys = np.zeros((2, 16), np.uint8)
        save_file({"keys": keys, "lengths": np.array([3, 4]), "values": np.zeros(5, np.float16)}, file)
    with pytest.raises(CheckpointError, match="scores.safetensors holds no scores of a text-only reference"):
        Scores.load(file)


def test_the_loader_s_state_tells_other_values_apart(blind: BlindBuilder) -> None:
    scores = scored(blind, 6)
    packers = [ScoredPacker(Packer(blind.builder, 1, 96), one) for one in (scores, scores.shuffled(0))]  # type: ignore[arg-type]
    first, second = (Loader(Numbered(6), packer) for packer in packers)
    with pytest.raises(DataError, match="same batches"):
        second.load_state_dict(first.state_dict())


def test_a_learned_word_keeps_its_place_where_the_picture_comes_after_it(blind: BlindBuilder) -> None:
    sample = Sample((Text("a red"), SHOWN, Text("circle")))
    unseen = blind.build(sample)
    row = np.linspace(0.2, 0.8, int((unseen.labels != IGNORED).sum())).astype(np.float16)
    scores = Scores({key(unseen.input_ids, unseen.labels): row})
    batch = collate_rows([[replace(blind.builder.build(sample), id="a")]], 40, 0)
    laid = scores.laid_out(batch, blind.place_id)
    assert laid[batch.labels != IGNORED].tolist() == row.astype(np.float32).tolist()
