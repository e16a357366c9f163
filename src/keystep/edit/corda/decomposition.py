"""A weight taken apart in the metric of a covariance: C', SVD(W C'), and the r components that an adapter begins with."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from keystep.errors import BadInput

DOUBLINGS = 60  # of the damping, before it is given up


class Regularised(NamedTuple):
    """C' and its inverse, both [d_in, d_in], and the damping that was needed."""

    matrix: Tensor
    inverse: Tensor
    damping: float


def regularised(C: Tensor, damping: float = 0.01, tolerance: float = 0.05, name: str = "") -> Regularised:
    """C' = C + damping · mean(diag C) · I, the damping doubled until ‖C' C'^-1 − I‖_F < tolerance.

    Raises:
        BadInput: C is zero or not finite.
    """
    mean = float(C.diagonal().mean())
    if not math.isfinite(mean) or mean <= 0:
        raise BadInput("reads only zeros, or values that are no numbers", field="module", value=name, mend="leave it out of the targets")
    for _ in range(DOUBLINGS):
        matrix = C.clone()
        matrix.diagonal().add_(mean * damping)
        try:
            inverse = torch.linalg.inv(matrix)
            product = matrix @ inverse
            product.diagonal().sub_(1)
            if float(product.norm()) < tolerance:
                return Regularised(matrix, inverse, damping)
        except RuntimeError:  # torch's LinAlgError: singular
            pass
        damping *= 2
    raise BadInput("has a covariance that cannot be inverted", field="module", value=name, mend="give more data")


def components(weight: Tensor, C: Regularised) -> tuple[Tensor, Tensor, Tensor]:
    """U [d_out, R], S [R] descending, V [R, d_in], R = min(d_out, d_in), with weight = U S V and SVD(weight C') = U S (V C')."""
    U, S, Vt = torch.linalg.svd(weight.to(C.matrix.dtype) @ C.matrix, full_matrices=False)
    return U, S, Vt @ C.inverse


class Factors(NamedTuple):
    """A [r, d_in] and B [d_out, r]; `share` is the part of Σ S² that they stand for."""

    A: Tensor
    B: Tensor
    share: float


def decompose(weight: Tensor, C: Regularised, rank: int, mode: str, scaling: float = 1.0) -> Factors:
    """The adapter of one weight [d_out, d_in]: the last `rank` components in mode "knowledge", the first in "instruction"."""
    U, S, V = components(weight, C)
    chosen = slice(len(S) - rank, None) if mode == "knowledge" else slice(rank)
    root = (S[chosen] / scaling).sqrt()
    share = float(S[chosen].square().sum() / S.square().sum())
    return Factors((root[:, None] * V[chosen]).contiguous(), (U[:, chosen] * root).contiguous(), share)
