"""Any causal language model of transformers, and what has to be known to use it as a part.

Legend: B rows, L positions, K learned words, d width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tessera.errors import UserError
from tessera.layers.attention import NAME as ATTENTION
from tessera.layers.masks import additive, block_causal
from tessera.models.lvlm.outputs import LVLMOutput
from tessera.weights import read_model


def new_language_model(config: PreTrainedConfig) -> PreTrainedModel:
    """One with new weights, with the house's attention where its class takes one from outside.

    Raises:
        UserError: no causal language model has such a configuration.
    """
    kinds: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in kinds:
        raise UserError(f"a {config.model_type!r} is no causal language model of transformers")
    if config._attn_implementation == ATTENTION and not _takes_the_houses(kinds[type(config)], config):
        config._attn_implementation = None  # transformers picks one that the class has
    return AutoModelForCausalLM.from_config(config)


def read_language_model(folder: str | Path) -> PreTrainedModel:
    """The one in a folder of transformers, in evaluation mode. Raises CheckpointError."""
    kind: Any = AutoModelForCausalLM
    return read_model(kind, folder, local_files_only=True)


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """While its configuration becomes part of another, which has the house's attention: `model` takes that over where
    its class can, and else keeps the one that it was built with."""
    config, before = model.config, model.config._attn_implementation
    yield
    if not _takes_the_houses(type(model), config):
        config._attn_implementation = before


def _takes_the_houses(kind: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    """Whether the house's attention computes what this class asks of one: it neither bounds scores nor has sinks."""
    bounded = getattr(config, "attn_logit_softcapping", None) is not None
    return kind._supports_attention_backend and kind._supports_sdpa and not bounded


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether it can be told the position of each word; one that counts them itself, as BLOOM does, cannot."""
    return "position_ids" in inspect.signature(model.forward).parameters


def packed_mask(model: PreTrainedModel, segment_ids: Tensor, position_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """What keeps the sequences of a row apart, [B, 1, L, L], in the form that `model` takes.

    Args:
        segment_ids, position_ids: [B, L], the number of each sequence, and places counted within it.
        dtype: of the embeddings.

    Raises:
        UserError: `model` counts positions itself, its attention takes no ready mask, or a sequence is longer than what
            its layers look back.
    """
    config: Any = model.config
    kind = config.model_type
    if not takes_positions(model):
        raise UserError(f"a {kind} takes no positions, so its rows cannot be packed; give one sequence a row")
    window = getattr(config, "sliding_window", None)
    # A mask made outside is used as it is by layers that look back only so far. Within that reach nothing changes.
    if window and segment_ids.shape[1] > window and (longest := int(position_ids.max()) + 1) > window:
        raise UserError(
            f"a packed sequence of {longest} positions is longer than the {window} that the layers of this {kind} look"
            f" back; give it a row of its own"
        )
    return ready_mask(model, block_causal(segment_ids), dtype)


def ready_mask(model: PreTrainedModel, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask [B, 1, L, T], True where it may be read, in the form that the layers of `model` take.

    Raises:
        UserError: its attention takes no ready mask.
    """
    how = model.config._attn_implementation
    if how not in (ATTENTION, "sdpa", "eager"):
        raise UserError(f"a ready mask needs attn_implementation {ATTENTION!r}, 'sdpa' or 'eager', not {how!r}")
    return mask if how == ATTENTION else additive(mask, dtype)  # others may add it to the scores as it is


@contextmanager
def head_reads(head: nn.Module, learned: Tensor) -> Iterator[None]:
    """Within, `head` reads only the states before learned words, [1, K, d] of [B, L, d], for a bool [B, L - 1].

    Done at the head's own door, because what a language model makes of its head's scores differs (Gemma bounds them,
    Cohere and Granite scale them).
    """
    keep = torch.cat([learned, torch.zeros_like(learned[:, :1])], dim=1)
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][keep][None], *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def learned_words(model: PreTrainedModel, inputs: dict[str, Any], labels: Tensor, steps: Tensor) -> LVLMOutput:
    """What `model` says of `inputs` where a learned word follows: `logits` and `words` of those alone.

    Args:
        labels: int64 [B, L].
        steps: bool [B, L - 1], the steps that end at a learned word.
    """
    with head_reads(model.get_output_embeddings(), steps):
        output = LVLMOutput.of(model(**inputs))
    assert output.logits is not None
    output.logits, output.words = output.logits[0], labels[:, 1:][steps]
    return output
