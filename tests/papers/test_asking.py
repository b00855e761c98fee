"""What studies of language models with eyes share: questions of some kinds, and models that learn to answer them."""

from __future__ import annotations

import pytest
import torch

from tessera.data.sequence import IGNORED
from tessera.papers.asking import Asked, AskingBench, Budget, truth

TINY = Budget(steps=2, rows=2, row_length=128, train_pictures=40, heldout_pictures=6)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> AskingBench:
    return AskingBench(TINY, tmp_path_factory.mktemp("study"))


def test_every_question_is_of_the_kinds_asked_for_and_the_same_each_time(bench: AskingBench) -> None:
    source = Asked(bench.world, "train", ("colour", "shape"))
    samples = [source[place] for place in range(len(source))]
    assert {sample.meta["type"] for sample in samples} == {"colour", "shape"}
    assert [truth(one) for one in samples] == [truth(source[place]) for place in range(len(source))]
    assert len({sample.id for sample in samples}) == len(source) == 4 * 40
    assert source.fingerprint() != Asked(bench.world, "train", ("colour", "place")).fingerprint()


def test_what_is_learned_from_is_what_the_whole_model_sees_and_the_eyes_stay(bench: AskingBench) -> None:
    torch.manual_seed(0)
    model = bench.parts.model(reducer="dct", keep_side=2)
    stage = bench.stage(model, Asked(bench.world, "train", ("colour",)), 0)
    batch = next(iter(stage.loader))
    (total, number) = stage.objective(model, batch)["words"]
    output = model(
        batch.input_ids, labels=batch.labels, segment_ids=batch.segment_ids, pixel_values=bench.pixels(batch.images)
    )
    assert number == int((batch.labels != IGNORED).sum())
    torch.testing.assert_close(total / number, output.loss, atol=1e-3, rtol=1e-3)  # features are kept in half precision
    assert not any(weight.requires_grad for weight in model.vision.parameters())


def test_a_model_is_trained_once_and_its_folder_cleared(bench: AskingBench) -> None:
    source = Asked(bench.world, "train", ("shape",))
    made = []

    def make():
        made.append(bench.parts.model(reducer="pool", keep_side=2))
        return made[-1]

    before = bench.parts.model(reducer="pool", keep_side=2).language_model.state_dict()
    model, steps, samples = bench.learn(make, source, 3, "shapes")
    assert (model, steps) == (made[0], 2) and samples > 0
    assert not list((bench.work / "training").iterdir())
    assert any(not torch.equal(before[name], weight) for name, weight in model.language_model.state_dict().items())


def test_prompts_end_where_the_answer_begins_and_bring_their_pictures(bench: AskingBench) -> None:
    model = bench.parts.model(reducer="pool", keep_side=3)
    source = Asked(bench.world, "heldout", ("place",))
    samples = [source[place] for place in range(6)]
    ((inputs, images),) = bench.prompts(model, samples)
    assert [image.key for image in images] == [sample.images[0].key for sample in samples]
    assert ((inputs["input_ids"] == model.config.image_token_id).sum(1) == 9).all()
    assert inputs["attention_mask"][:, -1].all()
    for ids, mask, sample in zip(inputs["input_ids"], inputs["attention_mask"], samples, strict=True):
        text = bench.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
        assert text.rstrip().endswith("ASSISTANT:") and sample.segments[1].text in text
