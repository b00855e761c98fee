"""The order of batches is a function of the seed alone: not of workers, processes or interruptions."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PIL

from tessera.data.images import Augment, Pixels
from tessera.data.loader import Loader, Samples
from tessera.data.packing import Batch, Packer
from tessera.data.quality import Opener, allowed
from tessera.data.sample import Image, Sample
from tessera.data.sequence import IGNORED, SequenceBuilder
from tessera.errors import DataError, UserError
from tests.data.tiny import Numbered, tokenizer

BUILDER = SequenceBuilder(tokenizer(), 3, max_length=64)
SET = Numbered(30, broken={3}, spoiled={5})


def _packed(source: Any = None, **options: Any) -> Loader[Batch]:
    packer = Packer(BUILDER, rows=2, row_length=64, window=8, pixels=Pixels(4, augment=Augment(0.5, 0.5)))
    return Loader(SET if source is None else source, packer, **options)


def _item(sample: Sample, rng: Any) -> tuple[str, float]:
    sample.images[0].pil()
    return sample.id, float(rng.random())


def _simple(source: Any = None, size: int = 4, **options: Any) -> Loader[list[tuple[str, float]]]:
    return Loader(SET if source is None else source, Samples(_item, list, size), **options)


def _same(one: Batch, two: Batch) -> bool:
    tensors = ("input_ids", "labels", "visual_target", "position_ids", "segment_ids", "pixel_values")
    return one.sample_ids == two.sample_ids and all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in tensors
    )


@settings(max_examples=12, deadline=None)
@given(cut=st.integers(0, 20), seed=st.integers(0, 5))
def test_packed_batches_resumed_equal_uninterrupted_ones(cut: int, seed: int) -> None:
    whole = list(islice(_packed(seed=seed), cut + 6))
    first = _packed(seed=seed)
    for _ in islice(first, cut):
        pass
    resumed = _packed(seed=seed)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for expected, batch in zip(whole[cut:], resumed, strict=False):
        assert _same(expected, batch)
    assert resumed.skips.bad.keys() <= {"numbered[3]", "numbered[5]"}


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 25))
def test_samples_resumed_equal_uninterrupted_ones(cut: int) -> None:
    whole = list(islice(_simple(), cut + 5))
    first = _simple()
    for _ in islice(first, cut):
        pass
    resumed = _simple()
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert list(islice(resumed, 5)) == whole[cut:]


def test_a_resume_at_the_exact_epoch_edge_starts_the_next_epoch() -> None:
    loader = _simple(Numbered(20), size=4)
    first = [name for batch in islice(loader, 5) for name, _ in batch]
    resumed = _simple(Numbered(20), size=4)
    resumed.load_state_dict(loader.state_dict())
    second = [name for batch in islice(resumed, 5) for name, _ in batch]
    assert sorted(first) == sorted(second) == sorted(str(number) for number in range(20))
    assert first != second


def test_an_epoch_holds_every_sample_once_and_each_epoch_has_its_own_order() -> None:
    names = [name for batch in islice(_simple(Numbered(12), size=5), 12) for name, _ in batch]
    epochs = [names[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == sorted(map(str, range(12))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    again = [name for batch in islice(_simple(Numbered(12), size=5), 12) for name, _ in batch]
    assert again == names


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_neither_batches_nor_the_state(workers: int) -> None:
    alone, helped = _packed(), _packed(workers=workers)
    for expected, batch in islice(zip(alone, helped, strict=False), 9):
        assert _same(expected, batch)
        assert alone.state_dict()["place"] == helped.state_dict()["place"]


def test_two_processes_together_see_the_batches_of_one() -> None:
    one = list(islice(_packed(), 8))
    ranks = [list(islice(_packed(rank=rank, world_size=2), 8)) for rank in range(2)]
    for number, batch in enumerate(one):
        rows = [ranks[row % 2][number].input_ids[row // 2] for row in range(2)]
        assert torch.equal(batch.input_ids, torch.stack(rows))
        pixels = [ranks[rank][number].pixel_values for rank in range(2)]
        assert torch.equal(batch.pixel_values, torch.cat(pixels))  # one row each, so in order


def test_a_run_of_one_process_is_resumed_by_two() -> None:
    whole = [sorted(batch) for batch in islice(_simple(), 9)]
    first = _simple()
    for _ in islice(first, 4):
        pass
    ranks = []
    for rank in range(2):
        loader = _simple(rank=rank, world_size=2)
        loader.load_state_dict(first.state_dict())
        ranks.append(list(islice(loader, 5)))
    assert [sorted(one + two) for one, two in zip(*ranks, strict=True)] == whole[4:]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="a batch of 4 does not divide among 3 processes"):
        _simple(world_size=3)


def test_prefetched_batches_do_not_count_as_seen() -> None:
    loader = _simple(workers=2)
    iterator = iter(loader)
    next(iterator)
    assert loader.state_dict()["place"]["position"] == 0
    assert loader.state_dict()["place"]["batches"] == 1
    iterator.close()


def test_other_data_are_refused_with_both_fingerprints_and_the_way_out() -> None:
    state = _simple(Numbered(30)).state_dict()
    grown = _simple(Numbered(31))
    with pytest.raises(DataError) as caught:
        grown.load_state_dict(state)
    assert all(word in str(caught.value) for word in (state["fingerprint"], grown.fingerprint, "allow_other_data"))
    grown.load_state_dict(state, allow_other_data=True)
    assert len(next(iter(grown))) == 4


def test_another_seed_or_batch_is_refused() -> None:
    state = _simple(Numbered(30)).state_dict()
    with pytest.raises(DataError, match="same seed: this run has 1, the saved one 0"):
        _simple(Numbered(30), seed=1).load_state_dict(state)
    with pytest.raises(DataError, match="same batches: this run has 5 samples, the saved one 4 samples"):
        _simple(Numbered(30), size=5).load_state_dict(state)


def test_a_bad_sample_is_named_once_and_another_stands_in(caplog: pytest.LogCaptureFixture) -> None:
    loader = _simple()
    batches = list(islice(loader, 40))
    assert all(len(batch) == 4 for batch in batches)
    assert not {"3", "5"} & {name for batch in batches for name, _ in batch}
    assert loader.skips.bad["numbered[3]"] == "number 3 is broken"
    assert len([record for record in caplog.records if "numbered[3]" in record.getMessage()]) == 1


def test_an_unreadable_picture_leaves_its_place_empty_and_moves_nothing_else() -> None:
    sound = list(islice(_packed(Numbered(30)), 16))
    spoiled = list(islice(_packed(Numbered(30, spoiled={5})), 16))
    met = 0
    for one, two in zip(sound, spoiled, strict=True):
        for row, other in zip(one.sample_ids, two.sample_ids, strict=True):
            assert [name for name in row if name != "5"] == other
            met += "5" in row
        assert two.pixel_values is not None and len(two.pixel_values) == len(two.images)
        assert torch.all(two.labels[two.segment_ids == 0] == IGNORED)
    assert met


def test_too_many_bad_samples_stop_the_run_with_the_last_named() -> None:
    with pytest.raises(DataError, match="could not be used, more than the 10 allowed; the last was numbered"):
        list(islice(_simple(Numbered(100, broken=set(range(30)))), 100))


def test_a_set_of_nothing_but_bad_samples_stops() -> None:
    for count in (1, 2, 15, 300):
        with pytest.raises(DataError):
            list(islice(_packed(Numbered(count, broken=set(range(count)))), 10))


def test_one_bad_file_among_fifty_does_not_stop_a_run() -> None:
    assert len(list(islice(_simple(Numbered(50, broken={7})), 100))) == 100


@pytest.mark.parametrize(
    ("tried", "total", "limit"), [(50, 50, 10), (4, 4, 2), (1, 1, 0), (5, 100_000, 10), (50_000, 100_000, 50)]
)
def test_what_is_allowed_is_hand_computed(tried: int, total: int, limit: int) -> None:
    assert allowed(tried, total) == limit


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    with pytest.raises(DataError, match="could not be used"):
        list(islice(_packed(Numbered(100, broken=set(range(60))), workers=2), 100))


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(DataError, match="numbered holds no samples"):
        _simple(Numbered(0))


def test_bad_sample_names_survive_a_resume() -> None:
    first = _simple()
    for _ in islice(first, 10):
        pass
    resumed = _simple()
    resumed.load_state_dict(first.state_dict())
    assert resumed.skips.bad == first.skips.bad != {}


def test_a_small_picture_that_was_opened_is_handed_on_decoded_and_a_large_one_as_it_was(tmp_path: Path) -> None:
    opener, shades = Opener(), np.random.default_rng(0)
    for side in (16, 256):
        PIL.fromarray(shades.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(tmp_path / f"{side}.png")
    small, large = (Image(tmp_path / f"{side}.png", learned=False, key=str(side)) for side in (16, 256))
    first, second = opener([small, large])
    assert isinstance(first.source, PIL.Image) and (first.key, first.learned) == ("16", False)
    assert np.array_equal(np.asarray(first.pil()), np.asarray(small.pil()))
    assert second is large
    assert opener([small]) == (small,)  # known to be good, and not opened again
