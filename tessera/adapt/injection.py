"""Prompts put into a CLIP while it runs, by hooks that are gone afterwards: the CLIP itself stays as it is.

    with word_prompts(clip.text_model, prompts):
        clip.text_model(input_ids)

Legend: n prompts before the words, m behind the patches; R texts or pictures of L positions, width C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import CLIPTextModel, CLIPVisionModel

Put = Callable[[Tensor, Tensor], Tensor]


def behind_start(states: Tensor, prompt: Tensor) -> Tensor:
    """States [R, L, C] whose positions 1 to n are `prompt` [1 or R, n, C]."""
    rows, after = len(states), 1 + prompt.shape[1]
    return torch.cat([states[:, :1], prompt.to(states.dtype).expand(rows, -1, -1), states[:, after:]], dim=1)


def at_end(states: Tensor, prompt: Tensor) -> Tensor:
    """States [R, L, C] followed by `prompt` [1 or R, m, C]."""
    return torch.cat([states, prompt.to(states.dtype).expand(len(states), -1, -1)], dim=1)


def in_place_of_end(states: Tensor, prompt: Tensor) -> Tensor:
    """States [R, L, C] whose last m positions are `prompt` [1 or R, m, C]."""
    return at_end(states[:, : -prompt.shape[1]], prompt)


@contextmanager
def word_prompts(tower: CLIPTextModel, prompts: Sequence[Tensor]) -> Iterator[None]:
    """While this lasts, the first prompts stand for the embeddings of the words 1 to n, before positions are added,
    and each further one for the states 1 to n that its layer would get. Later layers go on with what they get."""
    with _held(_hooks(tower.embeddings.token_embedding, behind_start, tower.encoder.layers, behind_start, prompts)):
        yield


@contextmanager
def patch_prompts(tower: CLIPVisionModel, prompts: Sequence[Tensor]) -> Iterator[None]:
    """While this lasts, the first prompts follow the embedded patches, before the first norm and without positions, and
    each further one stands for the last m states that its layer would get."""
    with _held(_hooks(tower.embeddings, at_end, tower.encoder.layers, in_place_of_end, prompts)):
        yield


def _hooks(first: Any, put_first: Put, layers: Any, put: Put, prompts: Sequence[Tensor]) -> Iterator[RemovableHandle]:
    for place, prompt in enumerate(prompts):
        if place == 0:
            yield first.register_forward_hook(lambda _module, _given, out, held=prompt: put_first(out, held))
        else:
            yield layers[place].register_forward_pre_hook(
                lambda _module, given, held=prompt: (put(given[0], held), *given[1:])
            )


@contextmanager
def _held(handles: Iterator[RemovableHandle]) -> Iterator[None]:
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield
