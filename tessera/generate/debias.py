"""Visual Debias Decoding: the language prior is taken off the scores of every next word.

l_dd = (1 + alpha) l(y | v, x) - alpha l(y | v', x), for the words with p(y | v, x) >= beta max p(y | v, x), where v' is
a picture without meaning. Debiasing Large Visual Language Models (2403.05262). With v' a noised picture it is visual
contrastive decoding (2311.16922).

Legend: B prompts, R = B * n rows of the search (n beams or samples a prompt), L positions, T words said, V words.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tessera.errors import UserError
from tessera.generate.meaningless import DECODING_STEP, Inputs, check_kind, diffuse, meaningless

ALPHA, BETA = 0.5, 0.1  # the published sampler's own
_GROWING = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")  # a column for each word said


class VisualDebias(LogitsProcessor):
    """For `generate` of any language model with eyes of transformers, ours among them: greedy, sampling and beams.

        blind = meaningless(inputs, "none", image_token_id=model.config.image_token_id)
        model.generate(**inputs, logits_processor=[VisualDebias(model, blind, alpha=1.0)])

    It runs a context of its own beside that of `generate`, two for "both" (whose scores are averaged), each with its
    own cache, and hears the words that were taken. Temperature, top-k and top-p act on what it gives. So should
    penalties: as processors after it in the list. As arguments of `generate` they act before it, and the contrast
    makes them stronger. Beams add scores up, so with them give `renormalize_logits=True`.

    Args:
        model: the model that generates.
        blind: inputs of `generate` for each further context, B rows padded on the left, as `meaningless` makes them.
        alpha: strength of the contrast; 0 takes nothing off.
        beta: the smallest share of the best word's probability that a word may have; 0 keeps all, 1 only the best.
        use_cache: False reads everything anew at every step.

    Raises:
        UserError: a number out of its range, or nothing to contrast with.
    """

    def __init__(
        self, model: Any, blind: Sequence[Inputs], *, alpha: float = ALPHA, beta: float = BETA, use_cache: bool = True
    ) -> None:
        _check(alpha, beta)
        if not blind:
            raise UserError("there is nothing to contrast with; give the inputs that `meaningless` makes")
        self.alpha, self.beta = alpha, beta
        self._contexts = [_Context(model, inputs, use_cache) for inputs in blind]
        self._heard: Tensor | None = None  # the ids of the last call
        self._prompt = 0  # positions of the prompt in them

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [R, V] of the words after `input_ids` [R, L]; -inf for words that are not plausible.

        Raises:
            UserError: R is not a multiple of the prompts that this was made for.
        """
        order = self._order(input_ids)
        if order is None:  # a generation begins
            self._prompt = input_ids.shape[1]
        said = input_ids[:, self._prompt :]
        prior = torch.stack([one.scores(said, order).to(scores) for one in self._contexts]).mean(0)
        floor = scores.amax(-1, keepdim=True) + (math.log(self.beta) if self.beta else -math.inf)
        self._heard = input_ids
        ruled_out = (scores < floor) | scores.isneginf()
        return (scores + self.alpha * (scores - prior)).masked_fill(ruled_out, -math.inf)

    def _order(self, ids: Tensor) -> Tensor | None:
        """Which row of the last call each row goes on, int64 [R]; None where `ids` go on from none.

        A search may move rows within one prompt. Rows of one prompt that said the same have the same caches.
        """
        prompts = self._contexts[0].rows
        if len(ids) % prompts:
            raise UserError(
                f"this debiases {prompts} prompts, and {len(ids)} rows are generated; give it those prompts"
            )
        heard = self._heard
        if heard is None or heard.shape != (len(ids), ids.shape[1] - 1):
            return None
        now, before = (one.view(prompts, -1, heard.shape[1]) for one in (ids[:, :-1], heard))
        same = (now[:, :, None] == before[:, None]).all(-1)
        if not same.any(-1).all():
            return None
        first = torch.arange(prompts, device=ids.device)[:, None] * same.shape[1]
        return (first + same.int().argmax(-1)).flatten()


@dataclass(frozen=True, kw_only=True)
class Debiasing:
    """How a model's answers are debiased.

    Args:
        kind: the meaningless picture that they are contrasted with, as of `meaningless`.
        alpha, beta: as of `VisualDebias`.

    Raises:
        UserError: there is no such kind, or a number is out of its range.
    """

    kind: str = "none"
    alpha: float = ALPHA
    beta: float = BETA

    def __post_init__(self) -> None:
        check_kind(self.kind)
        _check(self.alpha, self.beta)

    def over(self, model: Any, inputs: Inputs, unk_token_id: int | None = None) -> VisualDebias:
        """The processor for `model` and prompts that it is to go on with. Raises UserError as `meaningless`."""
        if self.kind == "noise":  # drawn for each picture alone, so that no answer depends on what is asked beside it
            pixels = torch.cat([diffuse(one, DECODING_STEP) for one in inputs["pixel_values"].split(1)])
            blind: Sequence[Inputs] = [{**inputs, "pixel_values": pixels}]
        else:
            token = model.config.image_token_id
            blind = meaningless(inputs, self.kind, image_token_id=token, unk_token_id=unk_token_id)
        return VisualDebias(model, blind, alpha=self.alpha, beta=self.beta)


def _check(alpha: float, beta: float) -> None:
    if not (math.isfinite(alpha) and alpha >= 0):
        raise UserError(f"alpha is {alpha}; give 0 (no contrast) or more, such as 0.5 or 1")
    if not 0 <= beta <= 1:
        raise UserError(f"beta is {beta}; give a share from 0 (all words) to 1 (the best alone)")


class _Context:
    """Prompts beside those of `generate`, which go on with the same words."""

    def __init__(self, model: Any, inputs: Inputs, use_cache: bool) -> None:
        self.model, self.use_cache = model, use_cache
        self.inputs = {name: value for name, value in inputs.items() if value is not None}
        self.ids: Tensor = self.inputs.pop("input_ids")
        self.rows = len(self.ids)
        self.inputs.setdefault("attention_mask", torch.ones_like(self.ids))
        parameters = inspect.signature(model.forward).parameters
        if "position_ids" in parameters:  # as the model's own `generate` counts them: some have several for a word
            places = model._prepare_position_ids_for_generation(self.ids, dict(self.inputs))
            self.inputs.setdefault("position_ids", places)
        self.options = {"use_cache": use_cache, **({"logits_to_keep": 1} if "logits_to_keep" in parameters else {})}
        self._state: dict[str, Any] = {}  # what the next step is given beside its word

    def scores(self, said: Tensor, order: Tensor | None) -> Tensor:
        """Raw scores [R, V] of the words after `said` [R, T].

        Args:
            order: int64 [R], the row of the last step that each row goes on; None where a generation begins.
        """
        times = len(said) // self.rows
        if not self.use_cache:
            parts = [self._anew(said[number::times]) for number in range(times)]
            return torch.stack(parts, dim=1).flatten(0, 1)
        if order is None:
            return self._begin(times)
        if not torch.equal(order, torch.arange(len(order), device=order.device)):
            self._state["past_key_values"].reorder_cache(order)
        output = self._read(said[:, -1:], self._state)
        self._state = self.model._update_model_kwargs_for_generation(output, self._state)
        return output.logits[:, -1]

    def _begin(self, times: int) -> Tensor:
        """Read the prompts once, and let each stand for `times` rows."""
        output = self._read(self.ids, self.inputs, is_first_iteration=True)
        output.past_key_values.batch_repeat_interleave(times)
        state = {name: self.inputs[name].repeat_interleave(times, dim=-2) for name in _GROWING if name in self.inputs}
        self._state = self.model._update_model_kwargs_for_generation(output, state)
        return output.logits[:, -1].repeat_interleave(times, dim=0)

    def _anew(self, said: Tensor) -> Tensor:
        """The same for one row of each prompt, `said` [B, T], without a cache."""
        inputs, number = dict(self.inputs), said.shape[1]
        if number:
            inputs = self.model._update_model_kwargs_for_generation({}, inputs, num_new_tokens=number)
        return self._read(torch.cat([self.ids, said], dim=1), inputs, is_first_iteration=True).logits[:, -1]

    def _read(self, ids: Tensor, inputs: Inputs, is_first_iteration: bool = False) -> Any:
        prepared = self.model.prepare_inputs_for_generation(
            ids, is_first_iteration=is_first_iteration, **inputs, **self.options
        )
        return self.model(**prepared, return_dict=True)
