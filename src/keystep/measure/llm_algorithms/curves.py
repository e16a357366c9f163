"""Curves of one call's error over its input size, fitted to pilot calls: a non-decreasing one, or a power law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from keystep.errors import BadInput


@dataclass(frozen=True, slots=True)
class Curve:
    """A function of the size, linear between its points, constant outside them."""

    sizes: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, m: float) -> float:
        return float(np.interp(m, self.sizes, self.values))

    @staticmethod
    def through(points: dict[float, float]) -> Curve:
        """Through these points as they are."""
        if not points:
            raise BadInput("needs at least one size", field="curve")
        sizes = sorted(points)
        return Curve(tuple(map(float, sizes)), tuple(float(points[m]) for m in sizes))

    @staticmethod
    def rising(points: dict[float, float], weights: dict[float, float] | None = None) -> Curve:
        """The non-decreasing curve nearest to the points in squares (isotonic regression, by pooling neighbours that fall)."""
        through = Curve.through(points)
        blocks: list[list[float]] = []  # value, weight, points
        for m, value in zip(through.sizes, through.values, strict=True):
            blocks.append([value, 1.0 if weights is None else weights[m], 1])
            while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
                (above, w, count), (value_before, w_before, count_before) = blocks.pop(), blocks.pop()
                total = w + w_before
                blocks.append([(above * w + value_before * w_before) / total, total, count + count_before])
        return Curve(through.sizes, tuple(value for value, _, count in blocks for _ in range(int(count))))


def power_law(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """(a, b) of a m^b, by least squares of the logarithms; values of 0 are left out.

    Raises:
        BadInput: fewer than two sizes have a value above 0.
    """
    points = [(m, value) for m, value in zip(sizes, values, strict=True) if m > 0 and value > 0]
    if len({m for m, _ in points}) < 2:
        raise BadInput("needs two sizes with an error above 0", field="sizes", value=list(sizes), mend="profile larger sizes")
    b, log_a = np.polyfit(np.log([m for m, _ in points]), np.log([value for _, value in points]), 1)
    return float(np.exp(log_a)), float(b)


def rising_affine(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """`affine` with no coefficient below 0: of all sets of columns that may stay, the one that fits best without the others."""
    columns = np.array([[1.0, *row] for row in rows], dtype=float)
    wanted = np.asarray(values, dtype=float)
    best, least = [0.0] * columns.shape[1], float(wanted @ wanted)
    for size in range(1, len(best) + 1):
        for kept in combinations(range(len(best)), size):
            found, *_ = np.linalg.lstsq(columns[:, kept], wanted, rcond=None)
            off = columns[:, kept] @ found - wanted
            if found.min() >= 0 and (missed := float(off @ off)) < least * (1 - 1e-9):
                best, least = [0.0] * len(best), missed
                for place, value in zip(kept, found, strict=True):
                    best[place] = float(value)
    return best


def affine(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Least squares of values on [1, *row]; coefficients that the rows cannot tell apart share what they explain (least norm)."""
    table = np.array([[1.0, *row] for row in rows], dtype=float)
    found, *_ = np.linalg.lstsq(table, np.asarray(values, dtype=float), rcond=None)
    return [float(x) for x in found]
