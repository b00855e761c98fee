"""The text-only reference: what it gives each word is what the model says, packed or alone, and each half of the
captions is scored by the reference that has not read it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tessera.data.blind import BlindBuilder, key
from tessera.data.few import First
from tessera.data.sample import Sample, Text
from tessera.data.sequence import IGNORED, SequenceBuilder
from tessera.errors import DataError, UserError
from tessera.models.causal import read_words
from tessera.train import blind
from tessera.train.blind import Captions, Reference, half_of, reference_stages, score
from tessera.train.optim import Optimiser
from tests.data.tiny import Numbered, tokenizer
from tests.models.lvlm_tiny import causal_model

WORDS = 400
KINDS = {"llama": {}, "gpt2": {}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}}


def model(kind: str = "llama"):
    return causal_model(kind, vocab_size=WORDS + 10, max_position_embeddings=128, **KINDS[kind])


def captions(count: int = 40) -> Captions:
    return Captions([(Numbered(count), 1.0)], BlindBuilder(SequenceBuilder(tokenizer(), 4, 96)))


@pytest.mark.light("prior", "exact")
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_packed_captions_are_the_model_s_own_chances_of_each_word_alone(kind: str) -> None:
    read, held = model(kind), captions(9)
    scores = score(held, [read, read], 2, 96)
    for _, _, tokens in held.sequences:
        ids = torch.from_numpy(tokens.input_ids).long()[None]
        chances = read(ids).logits[0, :-1].softmax(-1)
        own = chances[torch.arange(len(tokens) - 1), ids[0, 1:]].detach()[
            torch.from_numpy(tokens.labels[1:]) != IGNORED
        ]
        np.testing.assert_allclose(scores.of(tokens), own.numpy(), atol=1e-3)
        assert scores.of(tokens).dtype == np.float16


@pytest.mark.light("prior", "exact")
def test_a_reference_that_knows_nothing_gives_every_word_the_same_weight() -> None:
    read = model()
    torch.nn.init.zeros_(read.get_output_embeddings().weight)
    held = captions(5)
    values = score(held, [read, read], 2, 96).values
    np.testing.assert_allclose(values, 1 / (WORDS + 10), rtol=1e-3)
    assert len(set(values.tolist())) == 1


def test_every_caption_is_scored_by_the_reference_of_the_other_half(monkeypatch: pytest.MonkeyPatch) -> None:
    held = captions()
    asked: dict[str, list[bytes]] = {"first": [], "second": []}

    def scored(reference, sequences, rows, row_length):
        for one in sequences:
            asked[reference.name].append(key(one.input_ids, one.labels))
            yield asked[reference.name][-1], np.zeros(1, np.float16)

    monkeypatch.setattr(blind, "_scored", scored)
    score(held, [SimpleNamespace(name="first"), SimpleNamespace(name="second")], 2, 96)  # type: ignore[list-item]
    learned = [
        {key(one.input_ids, one.labels) for one in (held.builder.build(source[i]) for i in range(len(source)))}
        for mixture in held.halves()
        for source in mixture.sources
    ]
    assert learned[0].isdisjoint(learned[1])
    assert set(asked["second"]) == learned[0]
    assert set(asked["first"]) == learned[1]
    assert min(map(len, learned)) > 10


def test_captions_that_read_the_same_fall_into_the_same_half() -> None:
    held = captions(10)
    once = {key(one.input_ids, one.labels): half_of(one) for _, _, one in held.sequences}
    twice = Captions([(Numbered(10), 1.0), (First(Numbered(10), 10), 1.0)], held.builder)
    assert all(once[key(one.input_ids, one.labels)] == half_of(one) for _, _, one in twice.sequences)
    assert [len(half) for half in twice.halves()] == [2 * len(half) for half in held.halves()]


def test_a_half_without_captions_is_refused() -> None:
    with pytest.raises(DataError, match=r"too few different captions to make two halves of, and half \d is empty$"):
        captions(1).halves()


def test_a_half_that_bad_samples_emptied_says_what_is_wrong_with_them() -> None:
    held = captions(10)
    held.builder.builder.max_length = 3
    said = r"; 10 cannot be used, the last: \S+\[9\]: the sample needs \d+ tokens, limit 3"
    with pytest.raises(DataError, match=said):
        held.halves()


def test_bad_samples_are_left_to_the_loader_that_counts_them() -> None:
    held = Captions([(Numbered(8, broken={2, 5}), 1.0)], captions().builder)
    assert [place for _, place, _ in held.sequences] == [0, 1, 3, 4, 6, 7]


@pytest.mark.parametrize("rank", [2, 0])
def test_each_reference_learns_the_words_of_its_half_without_pictures(rank: int) -> None:
    held, made = captions(), []
    wanted = Reference(steps=1, rows=2, rank=rank, lora_alpha=4, optimiser=Optimiser())
    stages = list(reference_stages(held, model, wanted, 96, made))
    assert [stage.model for stage in stages] == made
    assert made[0] is not made[1]
    seen = []
    for stage, read in zip(stages, made, strict=True):
        batch = next(iter(stage.loader))
        seen.append({name for row in batch.sample_ids for name in row})
        assert held.builder.place_id not in batch.input_ids and not batch.images
        terms = stage.objective(read, batch)
        assert terms["words"][1] == int((batch.labels != IGNORED).sum())
        terms["words"][0].backward()
        learned = {name for name, weight in read.named_parameters() if weight.grad is not None}
        assert learned == {name for name, _ in read.named_parameters() if "lora_" in name or not rank}
    assert seen[0].isdisjoint(seen[1])


def test_rows_of_one_sequence_need_no_segments_and_a_model_without_positions_takes_no_others() -> None:
    read = causal_model("bloom")
    ids = torch.randint(6, 40, (2, 7), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(7) < 3, IGNORED)
    logits, words, steps = read_words(read, ids, labels)
    torch.testing.assert_close(logits, read(ids).logits[:, :-1][steps])
    assert torch.equal(words, ids[:, 3:].flatten())
    with pytest.raises(UserError, match="takes no positions"):
        read_words(read, ids, labels, torch.ones_like(ids))


def test_a_word_with_nothing_before_it_cannot_be_guessed() -> None:
    builder = SequenceBuilder(tokenizer(), 0, 96)
    builder.begin = []  # as with a tokenizer that has no begin token
    tokens = builder.build(Sample((Text("a red circle"),)))
    assert tokens.labels[0] != IGNORED
    ((_, values),) = blind._scored(model(), [tokens], 1, 96)
    assert values[0] == 0
    assert (values[1:] > 0).all()
