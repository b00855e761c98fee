"""Debiasing Large Visual Language Models (2403.05262).

What a model says without a meaningful picture is its language prior. It is taken off its answers afterwards
(`tessera.evaluate.posthoc`) or off the scores of every word as it is said (`tessera.generate.debias`); nothing is
trained. Hallucination is probed with questions about objects that are there and that are not
(`tessera.evaluate.hallucination`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from tessera.errors import UserError, nearest
from tessera.evaluate.posthoc import SMOOTHING, post_hoc
from tessera.generate.meaningless import CALIBRATION_STEP, DECODING_STEP, KINDS, STEPS, meaningless
from tessera.models.lvlm import LVLMConfig, LVLMForConditionalGeneration
from tessera.papers.figures import Figure
from tessera.papers.registry import Paper, paper
from tessera.papers.vdd_study import headline
from tessera.study.counting import count
from tessera.study.design import Study

# LLaVA-1.5-7B before transformers added rows to its table of words; the picture's mark lies outside it.
PLACE, UNK = 32000, 0
VICUNA = {"model_type": "llama", "vocab_size": PLACE, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
SEEN, UNSEEN = (0.55, 0.45), (0.67, 0.33)  # the worked example: yes and no with the picture and without


@paper("vdd")
class VDD(Paper):
    """What a model says without looking is its language prior; it is taken off its answers, and nothing is trained."""

    variants = KINDS

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        return {
            "parts": [
                "any language model with eyes, taken as it is; published: LLaVA-1.5, LLaVA-RLHF, Qwen-VL, InstructBLIP",
                "the same question without a meaningful picture: none (left out), unk (one unknown word for it), noise"
                f" (diffusion noise, step {CALIBRATION_STEP} of {STEPS}, {DECODING_STEP} in decoding), zeros, ones,"
                " both (none and unk)",
                "post-hoc debias: q = p / p' over the labels, made to sum to 1; p' of each question or the mean of all",
                "visual debias decoding (VDD): (1 + alpha) l(y | v, x) - alpha l(y | v', x) for words with at least"
                " beta of the best word's probability; alpha 0.5, beta 0.1",
                "a logits processor of transformers with caches of its own: greedy, sampling, beams, padded batches",
                "on the command line: `tessera ask`, `caption`, `chat` and `evaluate` with --debias KIND, --alpha and"
                " --beta; `evaluate --suite pope --calibrate KIND` for the post-hoc debias",
                "probes of absent objects as POPE asks them, from the scenes world: random, popular, adversarial"
                " (`evaluate --suite pope`); what captions name that is not there, as CHAIR counts it (--suite chair)",
            ],
            "stages": ["none: nothing is trained"],
            "claims": [
                "less hallucination and more helpful descriptions; much better scores without debiasing, too, by the"
                " choice of decoding settings alone (abstract); the tables could not be read",
            ],
            "other than in the published code": [
                "all casings of a label are summed over the full softmax of the raw scores; there, the first casing"
                " among the likeliest words after the temperature",
                "the calibration error is of probabilities; there, of a softmax over probabilities",
                "greedy decoding and beams are debiased too; there, sampling alone, one row at a time",
            ],
            "not built": ["the study of decoding settings"],
        }

    def figures(self) -> Sequence[Figure]:
        """Parameters of LLaVA-1.5-7B, what a word costs, and the worked example."""
        parts = {
            "total": "7,062,902,784", "vision": "303,507,456", "projector": "20,979,712",
            "language model": "6,607,343,616", "head": "131,072,000",
        }  # fmt: skip
        found = [
            Figure(f"LLaVA-1.5-7B, parameters, {name}", number, at=f"parameters / {name}", variant="none")
            for name, number in parts.items()
        ]
        example = "yes 0.55 with the picture, 0.67 without"
        return [
            *found,
            Figure("forward passes a word", "2", at="forward passes a word", variant="none"),
            Figure("forward passes a word, both", "3", at="forward passes a word", variant="both"),
            Figure("prompt tokens fewer without the picture", "576", at="prompt tokens fewer", variant="none"),
            Figure(f"{example}: yes, debiased", "0.375", at="worked example / yes", variant="none"),
            Figure(
                f"{example}: no, debiased", "0.625", at="worked example / no", variant="none",
                note="0.45 / 0.33 beside 0.55 / 0.67 is 0.6242; shares that round to the printed ones give 0.614 to"
                " 0.634, so that 0.625 follows from digits which the figure does not print, or from another sum",
            ),
        ]  # fmt: skip

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """LLaVA-1.5-7B and what debiasing with one kind of meaningless picture, or with each, adds to it."""
        if variant is None:
            return {name: self.size(name) for name in self.variants}
        if variant not in self.variants:
            raise UserError(f"{self.slug} has no variant {variant!r}{nearest(variant, self.variants)}")
        parameters, places = _counted()
        ids = torch.tensor([[1, *[PLACE] * places, 2]])
        inputs = {"input_ids": ids, "pixel_values": torch.zeros(1, 3, 1, 1)}
        blind = meaningless(inputs, variant, image_token_id=PLACE, unk_token_id=UNK)
        yes, no = post_hoc(torch.tensor(SEEN).double(), torch.tensor(UNSEEN).double()).tolist()
        return {
            "parameters": {**parameters, "added": 0},
            "forward passes a word": 1 + len(blind),
            "picture tokens": places,
            "prompt tokens fewer": max(ids.shape[1] - one["input_ids"].shape[1] for one in blind),
            "worked example": {"yes": yes, "no": no, "smoothing": SMOOTHING},
        }

    def study(self) -> Study:
        """The study of a model that has learned to say yes, debiased and not."""
        return headline()


@lru_cache(maxsize=1)
def _counted() -> tuple[dict[str, int], int]:
    """Parameters of LLaVA-1.5-7B by part, and the tokens of a picture."""
    with torch.device("meta"):
        model = LVLMForConditionalGeneration(LVLMConfig(text_config=VICUNA, image_token_id=PLACE))
    parts = {
        "total": model, "vision": model.vision, "projector": model.connector,
        "language model": model.language_model.get_decoder(), "head": model.get_output_embeddings(),
    }  # fmt: skip
    return {name: int(count(one)["parameters"]) for name, one in parts.items()}, model.num_image_tokens()
