"""Question answering as classification over a table of answers, with several answers to a question, each with a score.

Legend: B questions, A answers of the table.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from tessera.objectives.tally import Tally


def draw_answer(scores: Mapping[int, float], rng: np.random.Generator) -> int | None:
    """One answer, drawn in proportion to its score; None where there is none with a score above 0."""
    answers = [(answer, score) for answer, score in scores.items() if score > 0]
    if not answers:
        return None
    chances = np.array([score for _, score in answers])
    return answers[int(rng.choice(len(answers), p=chances / chances.sum()))][0]


def soft_answers(logits: Tensor, scores: Tensor) -> Tally:
    """Binary cross-entropy of each answer against its score in [0, 1], summed over answers and questions, [B, A] twice.

    A mean over B and A times A, as VQA models have it, is this sum over B.
    """
    return Tally(F.binary_cross_entropy_with_logits(logits.float(), scores.float(), reduction="sum"), len(logits))
