"""Packing keeps every token once, in its own segment, with its own positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.data.images import Pixels
from tessera.data.mixture import SourceStream
from tessera.data.packing import Packer, collate_rows, first_fit_decreasing
from tessera.data.sample import Image
from tessera.data.sequence import IGNORED, Sequence, SequenceBuilder
from tessera.errors import UserError
from tests.data.tiny import Numbered, tokenizer

LENGTHS = st.lists(st.integers(1, 16), min_size=1, max_size=40)


def _sequence(number: int, length: int) -> Sequence:
    ids = np.arange(length, dtype=np.int32) + 100 * (number + 1)
    labels = np.where(np.arange(length) % 2, ids, IGNORED).astype(np.int64)
    picture = Image(np.zeros((2, 2, 3), np.uint8), key=str(number))
    return Sequence(ids, labels, np.arange(length) % 3 == 1, (picture,), str(number))


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_every_sequence_lies_in_one_row_and_no_row_overflows(lengths: list[int]) -> None:
    rows = first_fit_decreasing(lengths, 16)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 16 for row in rows)
    assert sum(sum(lengths[index] for index in row) <= 8 for row in rows) <= 1  # else two would share a row


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_every_token_is_kept_once_with_its_label_and_position(lengths: list[int]) -> None:
    sequences = [_sequence(number, length) for number, length in enumerate(lengths)]
    rows = [[sequences[index] for index in row] for row in first_fit_decreasing(lengths, 16)]
    batch = collate_rows(rows, 16, pad_id=0)
    found = {}
    for r, row in enumerate(rows):
        for number, sequence in enumerate(row, start=1):
            here = batch.segment_ids[r] == number
            found[sequence.id] = sequence
            assert batch.input_ids[r, here].tolist() == sequence.input_ids.tolist()
            assert batch.labels[r, here].tolist() == sequence.labels.tolist()
            assert batch.visual_target[r, here].tolist() == sequence.visual_target.tolist()
            assert batch.position_ids[r, here].tolist() == list(range(len(sequence)))
    assert len(found) == len(lengths)
    assert int((batch.segment_ids != 0).sum()) == sum(lengths)
    padding = batch.segment_ids == 0
    assert torch.all(batch.input_ids[padding] == 0)
    assert torch.all(batch.labels[padding] == IGNORED)
    assert batch.image_keys == [sequence.id for row in rows for sequence in row]
    assert batch.sample_ids == [[sequence.id for sequence in row] for row in rows]


def test_a_sequence_longer_than_a_row_is_refused_not_cut() -> None:
    with pytest.raises(UserError, match="17 positions does not fit a row of 16"):
        first_fit_decreasing([3, 17], 16)


def test_a_batch_moves_with_its_tensors() -> None:
    batch = collate_rows([[_sequence(0, 4)]], 8, pad_id=0)
    moved = batch.to("meta")
    assert moved.input_ids.device.type == moved.segment_ids.device.type == "meta"
    assert moved.sample_ids == batch.sample_ids
    assert batch.input_ids.device.type == "cpu"


def test_planning_leaves_whole_batches_and_loses_nothing() -> None:
    builder = SequenceBuilder(tokenizer(), 3, max_length=64)
    packer = Packer(builder, rows=3, row_length=64, pixels=Pixels(4))
    stream = SourceStream(Numbered(40), seed=0)
    items = [packer.read(stream.draw(position)) for position in range(40)]
    groups, left = packer.plan(items)
    assert groups and all(len(group) == 3 for group in groups)
    packed = [item for group in groups for row in group for item in row]
    assert sorted(item.sequence.id for item in [*packed, *left]) == sorted(item.sequence.id for item in items)
    assert items[0] in packed


def test_pixels_follow_the_order_of_the_placeholders() -> None:
    builder = SequenceBuilder(tokenizer(), 3, max_length=64)
    packer = Packer(builder, rows=2, row_length=64, pixels=Pixels(4, mean=(0.0,) * 3, std=(1.0,) * 3))
    stream = SourceStream(Numbered(20), seed=0)
    groups, _ = packer.plan([packer.read(stream.draw(position)) for position in range(20)])
    batch = packer.batch(groups[0], lambda draw, error: None)
    assert batch.pixel_values is not None
    greys = (batch.pixel_values[:, 0, 0, 0] * 255).round().int().tolist()
    assert greys == [int(name) for row in batch.sample_ids for name in row]
    assert batch.image_keys == [name for row in batch.sample_ids for name in row]
