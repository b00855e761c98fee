"""How likely a model finds each of many answers to a question about each of many pictures.

Legend: M pictures, N embeddings a picture, d width, P positions of the prompt, A answers, T tokens of some answers,
L = P + T, V words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.data.sample import Image, question
from tessera.data.sequence import IGNORED, SequenceBuilder
from tessera.layers.masks import block_causal
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.models.vlgpt import VLGPTForConditionalGeneration

ROOM = 256  # tokens of answers that share one prompt
PICTURES = 32  # pictures that are asked about together


@torch.no_grad()
def log_likelihoods(
    model: VLGPTForConditionalGeneration | LVLMForConditionalGeneration,
    builder: SequenceBuilder,
    embeds: Tensor,
    asked: str,
    answers: Sequence[str],
) -> np.ndarray:
    """log p(answer | picture, question) in nats, float64 [M, A], of whole answers: the end token is a part of each.

    Many answers stand behind one prompt. Each reads the prompt and itself alone and begins at the position after the
    prompt, so that the result is that of one sequence for each answer, and the prompt is read once for all of them.

    Args:
        builder: that of the model.
        embeds: visual embeddings [M, N, d] from `encode_images`.
        asked: the question, put to the model as in its instruction tuning.
    """
    shown = Image(b"", role="user", learned=False)  # a placeholder; its embeddings are given
    built = [builder.build(question(shown, asked, answer)) for answer in answers]
    prompt = built[0].input_ids[: int((built[0].labels != IGNORED).argmax())].tolist()
    tails = [one.input_ids[len(prompt) :].tolist() for one in built]
    found = np.empty((len(embeds), len(answers)))
    for part in _parts([len(tail) for tail in tails]):
        layout = _Layout(prompt, [tails[index] for index in part], model.device)
        for start in range(0, len(embeds), PICTURES):
            found[start : start + PICTURES, part] = layout.score(model, embeds[start : start + PICTURES])
    return found


def _parts(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in order, in runs of at most ROOM tokens or of one answer."""
    part: list[int] = []
    for index, length in enumerate(lengths):
        if part and sum(lengths[i] for i in part) + length > ROOM:
            yield part
            part = []
        part.append(index)
    yield part


class _Layout:
    """One prompt and the answers behind it: ids, positions and mask, which are the same for every picture."""

    def __init__(self, prompt: list[int], tails: list[list[int]], device: torch.device) -> None:
        first = len(prompt)
        self.ids = torch.tensor(prompt + [token for tail in tails for token in tail], device=device)
        owner = [0] * first + [number for number, tail in enumerate(tails, start=1) for _ in tail]
        self.owner = torch.tensor(owner, device=device)
        places = [*range(first), *(first + place for tail in tails for place in range(len(tail)))]
        self.positions = torch.tensor(places, device=device)
        self.mask = block_causal(self.owner[None])
        self.mask[..., :first] |= (self.owner > 0)[:, None]
        # Where each token of an answer is foretold: by the one before it, its first by the end of the prompt.
        before = torch.arange(first - 1, len(owner) - 1, device=device)
        self.before = torch.where(self.positions[first:] == first, first - 1, before)
        self.first, self.count = first, len(tails)

    def score(self, model: VLGPTForConditionalGeneration | LVLMForConditionalGeneration, embeds: Tensor) -> np.ndarray:
        """log p of the answers for pictures [M, N, d]: float64 [M, answers]."""
        size, length = len(embeds), len(self.ids)
        inputs: Any = {
            "inputs_embeds": model.embed(self.ids.expand(size, -1), embeds),
            "attention_mask": self.mask.expand(size, -1, -1, -1),
            "position_ids": self.positions.expand(size, -1),
            "use_cache": False,
        }
        if isinstance(model, LVLMForConditionalGeneration):
            words = model(**inputs, logits_to_keep=self.before).logits.float()
        else:  # which scores two tokens beside those of its language model
            hidden = model.language_model.model(**inputs).last_hidden_state
            words = model.logits(hidden[:, self.before]).float()
        targets = self.ids[self.first :].expand(size, -1)
        spoken = words.gather(-1, targets[..., None])[..., 0] - words.logsumexp(dim=-1)
        total = spoken.new_zeros(size, self.count, dtype=torch.float64)
        owner = self.owner[self.first :].expand(size, length - self.first) - 1
        return total.scatter_add_(1, owner, spoken.double()).cpu().numpy()
