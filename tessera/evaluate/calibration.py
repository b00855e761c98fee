"""Whether answers are as often right as they are sure.

Legend: n answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tessera.errors import UserError
from tessera.evaluate.intervals import Estimate, bootstrap

BINS = 10


def expected_calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = BINS, seed: int = 0) -> Estimate:
    """The mean over answers of |share right - mean confidence| of their bin, with its bootstrap interval.

    The interval leans upwards where the error is small: an error cannot be below 0.

    Args:
        confidence: [n], the probability of the answer that was given, as it is: no softmax is taken of it.
        right: [n], 1 where it was right, else 0.
        bins: of equal width, each with its upper end.

    Raises:
        UserError: the two differ in length, or a confidence is no probability.
    """
    sure, hit = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if sure.shape != hit.shape:
        raise UserError(f"{sure.size} confidences and {hit.size} answers do not belong together")
    if sure.size and not (sure.min() >= 0 and sure.max() <= 1):
        raise UserError(f"a confidence of {sure[~((sure >= 0) & (sure <= 1))][0]:g} is no probability from 0 to 1")

    def error(sure: np.ndarray, hit: np.ndarray, axis: int) -> Any:
        places = np.clip(np.ceil(sure * bins) - 1, 0, bins - 1)
        gaps = [np.abs(((hit - sure) * (places == place)).sum(axis=axis)) for place in range(bins)]
        return np.sum(gaps, axis=0) / sure.shape[axis]

    return bootstrap((sure, hit), error, seed=seed)
