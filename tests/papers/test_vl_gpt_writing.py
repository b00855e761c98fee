"""The stage in which mini VL-GPT's regression head looks once more at drawings."""

from __future__ import annotations

import torch

from tessera.data.packing import Batch
from tessera.papers.vl_gpt_writing import DRAWINGS, TIMES, states_and_targets, writing_stage
from tessera.train.engine import Trainer
from tests.models.vlgpt_tiny import BEGIN, END, START, STOP, D, batch, tiny_model, tokenizer_config, words

PLACES, SLOT_TOKEN = 16, 5


def drawings(seed: int) -> Batch:
    """Eight rows in which words of that seed are followed by a picture; its image is the seed."""
    picture = [START, *[SLOT_TOKEN] * PLACES, STOP]
    fields = batch(*([BEGIN, *words(4, 10 * seed + row), *picture, END] for row in range(8)))
    places = torch.arange(fields["input_ids"].shape[1]).expand_as(fields["input_ids"])
    return Batch(**fields, position_ids=places, segment_ids=torch.ones_like(places), images=[seed], sample_ids=[])  # type: ignore[list-item]


def test_the_regression_head_reads_embeddings_from_the_states_before_them(tmp_path) -> None:
    model = tiny_model(
        tokenizer=tokenizer_config(num_embeddings=PLACES), visual_input_dropout=1.0, visual_projector="mlp",
        regression_head="residual",
    )  # fmt: skip
    truth = 0.2 * torch.randn(D, D, generator=torch.Generator().manual_seed(3))

    def embed(images):  # what the states before them tell
        ids = drawings(images[0]).input_ids
        hidden = model.train()(ids, visual_target=ids == SLOT_TOKEN, image_embeds=torch.zeros(8, PLACES, D)).hidden
        return hidden[:, 5 : 5 + PLACES] @ truth

    states, targets = states_and_targets(model, [drawings(seed) for seed in range(200)], embed, half=False)
    assert states.shape == targets.shape == (1600, PLACES, D)
    torch.testing.assert_close(states.float() @ truth, targets.float(), rtol=0, atol=5e-3)  # kept in half precision
    stage = writing_stage(model.regression_head, states, targets, seed=0)
    assert stage.steps == TIMES * 1600 // DRAWINGS
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Trainer(tmp_path, precision="fp32").run([stage])
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"regression_head"}
    held = drawings(300)
    output = model(
        held.input_ids, labels=held.labels, visual_target=held.visual_target, image_embeds=embed([300]),
        segment_ids=held.segment_ids,
    )  # fmt: skip
    assert output.visual_loss < 0.1 * embed([300]).square().mean()
