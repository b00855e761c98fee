"""A mixture keeps its shares, and each source its own epochs."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.data import tasks
from tessera.data.loader import Loader, Samples
from tessera.data.mixture import Mixture, SourceStream, stream_of
from tessera.errors import UserError
from tests.data.tiny import Numbered


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=6))
def test_every_thousand_samples_hold_each_source_in_its_share(weights: list[float]) -> None:
    mixture = Mixture([(Numbered(7), weight) for weight in weights])
    stream = mixture.stream(seed=3)
    counts = Counter(stream.draw(position).ticket[0] for position in range(2000))
    assert sum(counts.values()) == 2000
    for number, share in enumerate(mixture.shares):
        assert counts[number] >= 2
        assert abs(counts[number] / 2000 - share) <= 0.001 * len(weights)


def test_each_source_runs_through_its_own_epochs_in_order() -> None:
    mixture = Mixture([(Numbered(10), 3.0), (Numbered(50), 1.0)])
    stream = mixture.stream(seed=1)
    draws = [stream.draw(position) for position in range(1500)]
    for number, source in enumerate(mixture.sources):
        alone = SourceStream(source, 1, number)
        mine = [draw.ticket for draw in draws if draw.ticket[0] == number]
        assert mine == [alone.draw(position).ticket for position in range(len(mine))]
        assert sorted(index for _, epoch, index in mine if epoch == 0) == list(range(len(source)))


def test_a_position_gives_the_same_draw_whatever_was_asked_before() -> None:
    mixture = Mixture([(Numbered(10), 1.0), (Numbered(5), 1.0)])
    forward, backward = mixture.stream(0), mixture.stream(0)
    ahead = [forward.draw(position).ticket for position in range(1200)]
    assert [backward.draw(position).ticket for position in reversed(range(1200))] == ahead[::-1]
    assert [mixture.stream(1).draw(position).ticket for position in range(1200)] != ahead


def test_a_ticket_gives_back_its_draw() -> None:
    stream = Mixture([(Numbered(10), 1.0), (Numbered(5), 1.0)]).stream(0)
    for position in range(50):
        draw = stream.draw(position)
        again = stream.redraw(draw.ticket)
        assert (again.name, again.sample().id) == (draw.name, draw.sample().id)
        assert again.rng("task").random() == draw.rng("task").random()
        assert draw.rng("task").random() != draw.rng("augment").random()


def test_a_task_meets_a_sample_in_other_words_each_epoch_and_in_the_same_on_each_run() -> None:
    def run() -> list[str]:
        stream = stream_of(tasks.Mapped(Numbered(20), tasks.caption), seed=0)
        return [stream.draw(position).sample().text for position in range(60)]

    texts = run()
    assert texts == run()
    by_epoch = [sorted(texts[start : start + 20]) for start in (0, 20, 40)]
    assert by_epoch[0] != by_epoch[1] != by_epoch[2]


def test_a_task_over_a_task_varies_by_epoch_too() -> None:
    outer = tasks.Mapped(tasks.Mapped(Numbered(20), tasks.draw), tasks.chat)
    one, two = (outer.draw(3, np.random.default_rng(seed)).text for seed in (0, 1))
    assert one != two


def test_a_mixture_loads_and_resumes_like_a_source() -> None:
    def loader() -> Loader[list[str]]:
        mixture = Mixture([(Numbered(10), 1.0), (Numbered(50), 2.0)])
        return Loader(mixture, Samples(lambda sample, rng: sample.id, list, 8))

    whole = list(islice(loader(), 20))
    first, resumed = loader(), loader()
    for _ in islice(first, 13):
        pass
    resumed.load_state_dict(first.state_dict())
    assert list(islice(resumed, 7)) == whole[13:]


def test_the_fingerprint_knows_sources_weights_and_tasks() -> None:
    prints = {
        Mixture([(Numbered(10), 1.0), (Numbered(5), 1.0)]).fingerprint(),
        Mixture([(Numbered(10), 1.0), (Numbered(5), 2.0)]).fingerprint(),
        Mixture([(Numbered(10), 1.0), (Numbered(6), 1.0)]).fingerprint(),
        Mixture([(tasks.Mapped(Numbered(10), tasks.draw), 1.0), (Numbered(5), 1.0)]).fingerprint(),
    }
    assert len(prints) == 4


class _World:
    name = "little"
    tasks = ("pairs", "pages")

    def source(self, task: str, split: str = "train") -> Numbered:
        return Numbered(10)


def test_instructions_are_made_of_what_a_world_has() -> None:
    mixture = tasks.instructions(_World())
    assert [source.name for source in mixture.sources] == ["numbered (caption)", "numbered (draw)"]
    only = tasks.instructions(_World(), weights={"draw": 0})
    assert [source.name for source in only.sources] == ["numbered (caption)"]
    with pytest.raises(UserError, match="unknown instruction 'drw'; did you mean 'draw'"):
        tasks.instructions(_World(), weights={"drw": 1})
    with pytest.raises(UserError, match="little has no instructions"):
        tasks.instructions(_World(), weights={"draw": 0, "caption": 0})


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [float("nan")]])
def test_a_mixture_needs_weights_above_zero(weights: list[float]) -> None:
    with pytest.raises(UserError, match="weight above 0"):
        Mixture([(Numbered(3), weight) for weight in weights])


def test_draws_as_plain_source_depend_on_the_index_alone() -> None:
    mapped = tasks.Mapped(Numbered(5), tasks.draw)
    assert mapped[2].text == mapped[2].text
    assert len(mapped) == 5
    assert mapped.draw(2, np.random.default_rng(0)).id == "2"
