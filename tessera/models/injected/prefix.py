"""Tokens before the states of a decoder's layers, put there at the doors of the layers of any causal language model.

Legend: B rows, L words of this pass, T words with those in the cache, P tokens of the prompt, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from tessera.errors import UserError
from tessera.models.lvlm.language import ready_mask
from tessera.models.lvlm.layers import Enter, at_door, decoder_of, on_leaving


def word_mask(valid: Tensor, words: int, faithful: bool) -> Tensor:
    """bool [B, L, T]: which words the last L = `words` of `valid` bool [B, T] read. Padding reads padding, so that no
    row is empty; where `faithful`, the words before it, as in the official code."""
    total = valid.shape[1]
    place = torch.arange(total, device=valid.device)
    earlier = place <= place[total - words :, None]
    if not faithful:
        return (valid[:, total - words :, None] == valid[:, None, :]) & earlier
    return valid[:, None, :] & earlier


def word_places(valid: Tensor, words: int, padding: int) -> Tensor:
    """int64 [B, L]: the positions of the last L = `words` of `valid` [B, T], counted without padding, which stands at
    `padding`."""
    valid = valid.long()
    return (valid.cumsum(-1) - 1).masked_fill(valid == 0, padding)[:, -words:]


def grown_mask(mask: Tensor, prompt: int, token: bool, faithful: bool) -> Tensor:
    """bool [B, 1, n, n] for `mask` [B, L, L] with P = `prompt` tokens before the words and, where asked, the token
    before those: n = L + P (+ 1). Words read all of them, the prompt itself from left to right; the token reads itself
    and the prompt, or everything where `faithful`. What would read nothing reads itself."""
    length = mask.shape[1]
    mask = F.pad(mask, (prompt, 0, prompt, 0), value=False)
    mask[:, :prompt, :prompt] = torch.ones(prompt, prompt, dtype=torch.bool, device=mask.device).tril()
    mask[:, prompt:, :prompt] = True
    if token:
        mask = F.pad(mask, (1, 0, 1, 0), value=True)
        if not faithful:
            mask[:, 0, -length:] = False
    mask = mask | (~mask.any(-1, keepdim=True) & torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device))
    return mask[:, None]


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What stands before the words in one pass.

    Args:
        start: the first layer with the token.
        masks: bool [B, 1, L', T'] of the layers before `start` and of those from there on.
        prompt: [B, P, d], where it enters in this pass; P may be 0.
        tokens: [B, 1, d] by layer, where they enter in this pass.
    """

    start: int
    masks: tuple[Tensor, Tensor]
    prompt: Tensor | None
    tokens: Mapping[int, Tensor]

    @contextmanager
    def before(self, model: PreTrainedModel) -> Iterator[None]:
        """Within, the layers of `model` see it; what comes out of the last one is the words alone.

        Raises:
            UserError: more positions than its layers look back; or while the model runs: its layers take something of
                the words' length that is not known here.
        """
        window, longest = getattr(model.config, "sliding_window", None), self.masks[1].shape[-1]
        if window and longest > window:
            raise UserError(
                f"{longest} positions, with those before the words, are more than the {window} that the layers of this"
                f" {model.config.model_type} look back; shorten the text"
            )
        table: Any = model.get_input_embeddings()
        masks = [ready_mask(model, mask, table.weight.dtype) for mask in self.masks]
        layers = decoder_of(model)[1]
        with ExitStack() as stack:
            for index, layer in enumerate(layers):
                stack.callback(at_door(layer, self._enter(index, masks[index >= self.start])).remove)
            if extra := self._length(len(layers) - 1):
                stack.callback(on_leaving(layers[-1], lambda states: states[:, extra:]).remove)
            yield

    def _length(self, index: int) -> int:
        """How many positions of this pass stand before the words at layer `index`."""
        length = 0 if self.prompt is None else self.prompt.shape[1]
        return length + int(bool(self.tokens) and index >= self.start)

    def _enter(self, index: int, mask: Tensor) -> Enter:
        def enter(states: Tensor, named: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
            if index == 0 and self.prompt is not None:
                states = torch.cat([self.prompt.to(states.dtype), states], dim=1)
            if (token := self.tokens.get(index)) is not None:
                rest = states if index == self.start else states[:, 1:]
                states = torch.cat([token.to(states.dtype), rest], dim=1)
            return states, {**named, **self._positions(named, self._length(index)), "attention_mask": mask}

        return enter

    @staticmethod
    def _positions(named: Mapping[str, Any], extra: int) -> dict[str, Any]:
        """Those of the words with none before them: no rotation, at the length that the others have (YaRN scales)."""
        found: dict[str, Any] = {}
        if extra and (ids := named.get("position_ids")) is not None:
            found["position_ids"] = F.pad(ids, (extra, 0))
        if extra and (rotary := named.get("position_embeddings")) is not None:
            cos, sin = rotary
            still = torch.hypot(cos[:, :1], sin[:, :1]).expand(-1, extra, -1)
            found["position_embeddings"] = torch.cat([still, cos], 1), F.pad(sin, (0, 0, extra, 0))
        return found
