"""Answers among a few labels, and how the language prior is taken off them afterwards.

What a model answers without a meaningful picture is its prior; divided by it, a question without a picture has a
uniform answer. Debiasing Large Visual Language Models (2403.05262), after contextual calibration (2102.09690). Its code
takes the first casing of a label among the likeliest words after the temperature; here all casings are summed over the
full softmax of the raw scores.

Legend: B questions, T words said, K labels, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tessera.errors import UserError

SMOOTHING = 1e-4  # added to the prior of each label, which may be 0
YES_NO = ("yes", "no")
_BRACKETS = "()[]{}<>"


def label_words(tokenizer: Any, labels: Sequence[str], *, casings: bool = True) -> list[list[int]]:
    """The ids of the words that say each label: with and without a space before it, in any casing.

    A spelling of several tokens is left out, for the first of them may begin another word.

    Args:
        casings: "yes", "Yes" and "YES" are one label. False for option letters, where "a" is an article.

    Raises:
        UserError: the tokenizer has no single token for a label, or one token for two.
    """
    found: list[list[int]] = []
    for label in labels:
        spellings = {label, label.lower(), label.capitalize(), label.upper()} if casings else {label}
        written = [space + one for one in spellings for space in ("", " ")]
        encoded = [tokenizer(one, add_special_tokens=False)["input_ids"] for one in written]
        words = sorted({ids[0] for ids in encoded if len(ids) == 1} - {tokenizer.unk_token_id})
        if not words:
            raise UserError(f"the tokenizer has no single token for {label!r}; take labels that are one token")
        for other, others in zip(labels, found, strict=False):
            if set(words) & set(others):
                raise UserError(f"{other!r} and {label!r} share a token; take labels that differ, or casings=False")
        found.append(words)
    return found


def label_probabilities(logits: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """The probability of each label, [B, K], summed over its words; all labels together may have less than 1.

    Args:
        logits: raw scores [B, V], before temperature and any other processor.
        words: of `label_words`.
    """
    shares = logits.double().softmax(-1)
    return torch.stack([shares[:, list(one)].sum(-1) for one in words], dim=1)


def answer_logits(steps: Sequence[Tensor], said: Tensor, tokenizer: Any) -> Tensor:
    """Of each row, the scores [B, V] where its answer begins: at its first word that is no bracket and no space.

    Args:
        steps: T times [B, V], `logits` of what `generate` gives with `output_logits`; they are raw.
        said: int64 [B, T], the words that were taken.
    """
    texts = [[tokenizer.decode([word]).strip().strip(_BRACKETS).strip() for word in row] for row in said.tolist()]
    places = [next((place for place, text in enumerate(row) if text), 0) for row in texts]
    return torch.stack([steps[place][row] for row, place in enumerate(places)])


def shares(probabilities: Tensor) -> Tensor:
    """[..., K] made to sum to 1; uniform where all are 0."""
    total = probabilities.sum(-1, keepdim=True)
    uniform = torch.full_like(probabilities, 1 / probabilities.shape[-1])
    return torch.where(total > 0, probabilities / total.clamp_min(torch.finfo(probabilities.dtype).tiny), uniform)


def language_prior(contexts: Sequence[Tensor], scope: Literal["individual", "all"] = "individual") -> Tensor:
    """p' of each question, [B, K], from its probabilities [B, K] in one or several meaningless contexts, summed.

    Args:
        scope: "all" gives every question the mean over the questions.

    Raises:
        UserError: there is no context.
    """
    if not contexts:
        raise UserError("a prior needs at least one meaningless context")
    total = torch.stack([shares(one) for one in contexts]).sum(0)
    if scope == "all":
        total = total.mean(0, keepdim=True).expand_as(total)
    return shares(total)


def post_hoc(probabilities: Tensor, prior: Tensor, weights: Literal["diagonal", "identity"] = "diagonal") -> Tensor:
    """What is left of p [..., K] without the prior p' [..., K]; the largest is the answer.

    Args:
        weights: "diagonal" is q = p / (p' + SMOOTHING), made to sum to 1. "identity" is p - p', which sums to 0: only
            the order of its numbers means something.
    """
    seen, expected = shares(probabilities), shares(prior)
    return shares(seen / (expected + SMOOTHING)) if weights == "diagonal" else seen - expected
