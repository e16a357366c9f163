"""Whether a model is as often right as it is sure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keystep.errors import BadInput


def ece(confidence: Sequence[float] | Any, correct: Sequence[bool] | Any, bins: int = 10) -> float:
    """Expected calibration error: sum over bins b of equal width of (n_b / N) |accuracy_b − mean confidence_b|, from 0 to 1.

    Args:
        confidence: of each prediction, from 0 to 1.
        correct: whether it was right.

    Raises:
        BadInput: there is no prediction, the two differ in length, or a confidence is no probability.
    """
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if sure.shape != right.shape or sure.ndim != 1 or not len(sure):
        raise BadInput("confidences and outcomes are two lists of the same length", field="confidence", value=(sure.shape, right.shape))
    if not ((sure >= 0) & (sure <= 1 + 1e-6)).all():
        raise BadInput("is no probability", field="confidence", value=float(sure[~((sure >= 0) & (sure <= 1 + 1e-6))][0]))
    which = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = np.bincount(which, weights=right - sure, minlength=bins)  # n_b (accuracy_b − confidence_b)
    return float(np.abs(gaps).sum() / len(sure))
