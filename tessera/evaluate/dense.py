"""How well dense predictions agree with what is there: intersection over union, and errors of depth.

Legend: n pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tessera.data.dense import IGNORED
from tessera.data.quality import Tally
from tessera.data.source import Source
from tessera.errors import BadSample, DataError
from tessera.models.diffusion.perception import PerceptionModel, PerceptionOutput

BATCH = 32  # pictures that are looked at together
DEPTH_SCORES = ("rmse", "abs_rel", "log10", "silog", "d1", "d2", "d3")


@dataclass(frozen=True)
class Overlap:
    """Counts of pixels by picture and class, int64 [n, K] each: of predicted and labelled as the class, and of
    either."""

    both: np.ndarray
    either: np.ndarray

    def mean(self) -> float:
        """mIoU: intersections over unions of all pictures, averaged over the classes that are there or predicted."""
        both, either = self.both.sum(0), self.either.sum(0)
        return float((both[either > 0] / either[either > 0]).mean()) if either.any() else 0.0

    def overall(self, place: int = 1) -> float:
        """oIoU of one class: the sum of its intersections over that of its unions."""
        return float(self.both[:, place].sum() / max(self.either[:, place].sum(), 1))

    def by_picture(self) -> np.ndarray:
        """Float [n]: the mean over the classes that are in the picture or predicted there; 1 where there is none."""
        there = self.either > 0
        shares = np.divide(self.both, self.either, out=np.zeros(self.both.shape), where=there)
        return np.where(there.any(1), shares.sum(1) / np.maximum(there.sum(1), 1), 1.0)


def overlap(predicted: np.ndarray, labels: np.ndarray, classes: int) -> Overlap:
    """The overlap of classes int [n, H, W] that are predicted with those that are there; pixels that are IGNORED there
    count for nothing."""
    known = labels != IGNORED
    rows = np.arange(len(labels))[:, None, None] * classes

    def counts(chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
        places = (rows + values)[chosen]
        return np.bincount(places, minlength=len(labels) * classes).reshape(-1, classes)

    both = counts(known & (predicted == labels), labels)
    return Overlap(both, counts(known, predicted) + counts(known, np.where(known, labels, 0)) - both)


def depth_scores(depth: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Errors of depths over the pixels whose depth is known (above 0), of one picture or of many at once: root mean
    square, mean relative, mean of log10, scale-invariant of logs, and the shares within 1.25, 1.25^2 and 1.25^3.

    Nothing known gives no error and full shares.
    """
    known = labels > 0
    if not known.any():
        return {name: float(name.startswith("d")) for name in DEPTH_SCORES}
    found, there = depth[known].astype(np.float64), labels[known].astype(np.float64)
    ratio, logs = np.maximum(found / there, there / found), np.log(found) - np.log(there)
    return {
        "rmse": float(np.sqrt(np.mean((found - there) ** 2))),
        "abs_rel": float(np.mean(np.abs(found - there) / there)),
        "log10": float(np.mean(np.abs(logs)) / np.log(10)),
        "silog": float(np.sqrt(max(np.mean(logs**2) - 0.5 * np.mean(logs) ** 2, 0.0))),
        **{f"d{power}": float(np.mean(ratio < 1.25**power)) for power in (1, 2, 3)},
    }


@torch.no_grad()
def _answers(
    model: PerceptionModel, source: Source, read: Callable[..., Mapping[str, np.ndarray]], answer: Callable[..., Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    found, there = [], []
    for rows in _batches(source, read):
        given = {name: torch.from_numpy(np.stack([row[name] for row in rows])).to(model.device) for name in rows[0]}
        there.append(given.pop("labels").cpu().numpy())
        found.append(answer(model(**given)).cpu().numpy())
    return np.concatenate(found), np.concatenate(there)


def _batches(source: Source, read: Callable[..., Mapping[str, np.ndarray]]) -> Iterator[list[Mapping[str, np.ndarray]]]:
    """The samples that can be read, BATCH at a time; those that cannot are counted and named in the log.

    Raises:
        DataError: none can be read.
    """
    rows: list[Mapping[str, np.ndarray]] = []
    bad, good = Tally(), 0
    for place in range(len(source)):
        try:
            rows.append(read(source[place]))
        except BadSample as error:
            bad.add(str(error), f"{source.name} {place}")
            continue
        good += 1
        if len(rows) == BATCH:
            yield rows
            rows = []
    if rows:
        yield rows
    if bad:
        bad.log(source.name, good)
    if not good:
        raise DataError(f"{source.name} has no picture to judge by: {bad}")


def model_overlap(model: PerceptionModel, source: Source, read: Callable[..., Mapping[str, np.ndarray]]) -> Overlap:
    """That of a model's likeliest classes, or of the thing (1) and the rest (0) that it finds, on every sample.

    Args:
        read: a `DenseReader`, or what gives `latents` in place of `pixel_values`. The model is in evaluation mode.
    """

    def answer(found: PerceptionOutput) -> Tensor:
        assert found.logits is not None
        return found.logits.argmax(1)

    classes = 2 if model.config.task == "referring" else len(model.classes)
    return overlap(*_answers(model, source, read, answer), classes)


def model_depths(
    model: PerceptionModel, source: Source, read: Callable[..., Mapping[str, np.ndarray]]
) -> list[dict[str, float]]:
    """`depth_scores` of a model on every sample; see `model_overlap`."""

    def answer(found: PerceptionOutput) -> Tensor:
        assert found.depth is not None
        return found.depth

    return [depth_scores(one, labels) for one, labels in zip(*_answers(model, source, read, answer), strict=True)]


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Scores of pictures averaged by name."""
    return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
