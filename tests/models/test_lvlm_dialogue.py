"""From samples to answers: dialogues are built, packed and learned, and prompts are answered from their pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.data.conversation import LLAVA, ConversationBuilder
from tessera.data.images import Pixels
from tessera.data.mixture import SourceStream
from tessera.data.packing import Packer
from tessera.data.sample import Image, Sample, Text, question
from tessera.models.lvlm import LVLMForConditionalGeneration
from tests.data.tiny import tokenizer
from tests.models.lvlm_tiny import TEXT, left_padded, tiny_config

TOKENIZER = tokenizer()
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
PIXELS = Pixels(16)


def plain(colour):
    return Image(np.full((16, 16, 3), COLOURS[colour], np.uint8))


class Colours:
    """Questions about one picture, or about the second of two."""

    name = "colours"

    def __len__(self):
        return 16

    def __getitem__(self, index, /):
        first, second = list(COLOURS)[index % 4], list(COLOURS)[index // 4]
        one = question(plain(first), "Which colour?", first)
        if first == second:
            return one
        shown = Image(plain(second).source, learned=False, role="user")
        return Sample(
            (one.segments[0], shown, Text("Which colour is second?", False, "user"), Text(second, True, "assistant"))
        )

    def fingerprint(self):
        return "colours"


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(TOKENIZER), "eos_token_id": TOKENIZER.eos_token_id, "tie_word_embeddings": True}
    slot = TOKENIZER.convert_tokens_to_ids("<image>")
    model = LVLMForConditionalGeneration(
        tiny_config(text_config={"model_type": "llama", **text}, image_token_id=slot)
    ).train()
    builder = ConversationBuilder(TOKENIZER, model.num_image_tokens(), max_length=64, chat_template=LLAVA)
    packer, stream = Packer(builder, rows=4, row_length=256, pixels=PIXELS), SourceStream(Colours(), seed=0)
    items = [packer.read(stream.draw(place)) for place in range(16)]
    rows = [items[start : start + 4] for start in range(0, 16, 4)]
    batch = packer.batch(rows, lambda draw, error: pytest.fail(str(error)))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(120):
        loss = model(
            batch.input_ids, labels=batch.labels, segment_ids=batch.segment_ids, pixel_values=batch.pixel_values
        ).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    return model.eval(), builder, losses


def test_dialogues_in_packed_rows_are_learned_and_answered_from_the_right_picture(trained):
    model, builder, losses = trained
    assert losses[-1] < 0.1 < losses[0]
    samples = [Colours()[index] for index in range(16)]
    prompts = [builder.prompt(sample.segments[:-1]) for sample in samples]
    pictures = torch.from_numpy(np.stack([PIXELS.one(image.pil()) for one in prompts for image in one.images]))
    ids = left_padded(*[prompt.input_ids.tolist() for prompt in prompts])
    said = model.generate(**ids, pixel_values=pictures, max_new_tokens=8, do_sample=False, pad_token_id=0)
    answers = TOKENIZER.batch_decode(said[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [answer.strip() for answer in answers] == [sample.segments[-1].text for sample in samples]


def test_in_bfloat16_the_scores_are_those_of_fp32_to_its_precision(trained):
    model, builder, _ = trained
    sequence = builder.build(Colours()[1])
    ids, segments = torch.from_numpy(sequence.input_ids).long()[None], torch.ones(1, len(sequence), dtype=torch.long)
    shown = torch.from_numpy(np.stack([PIXELS.one(image.pil()) for image in sequence.images]))
    exact = model(ids, segment_ids=segments, pixel_values=shown).logits
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(ids, segment_ids=segments, pixel_values=shown).logits
    assert (exact - mixed).abs().max() < 0.05 * exact.abs().max()
