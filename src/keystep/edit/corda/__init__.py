"""CorDA: LoRA adapters that begin in the directions which a data sample uses least (to keep a skill) or most (to learn one).

Paper: Yang, Li, Zhou, Song, Wu, Nie, Ghanem 2024, CorDA: Context-Oriented Decomposition Adaptation of Large Language Models, NeurIPS 2024,
arXiv 2406.05223. For a linear layer y = W x with inputs X [d_in, tokens] on the sample: C = X X^T, a mean over sequences;
C' = C + damping · mean(diag C) · I, the damping doubled until ‖C' C'^-1 − I‖_F < tolerance; SVD(W C') = U S V^T; `V` below is V^T C'^-1,
so that W = U S V. Mode "knowledge" (the paper's knowledge-preserved, KPM) takes the last r components, the sample being of what is to be
kept; "instruction" (instruction-previewed, IPM) the first r, the sample being of what is to be learned. B = U_r √S_r, A = √S_r V_r, and
the frozen weight becomes W − scaling · B A with S_r divided by scaling = alpha / r first. Before training the model is what it was.

The result is an ordinary PEFT LoRA adapter on a changed base. As in PEFT's own initialisation every sequence's inputs are divided by
|max X| (`normalise="max"`); unlike it, sequences may be batched (padding never counts), layers are done one after another on what the
layers before them gave, and modules that read the same tensor (q, k, v; gate, up) share C and its inverse: no more than one layer's
covariances are there at a time. `covariance` adds them up, `decomposition` takes a weight apart, `adapter` does both for a model and
writes what PEFT loads. Not covered: embeddings and head, expert weights that are no Linear modules, quantised weights, ranks
chosen layer by layer (CorDA++).
"""

from __future__ import annotations

from keystep.edit.corda.adapter import (
    Adapted,
    Corda,
    Row,
    adapt,
    linear_modules,
    peft_for,
    save,
    sequences,
    to_lora,
)
from keystep.edit.corda.covariance import Covariance, covariances
from keystep.edit.corda.decomposition import Factors, Regularised, components, decompose, regularised
from keystep.nn.examples import batches

__all__ = [
    "Adapted", "Corda", "Covariance", "Factors", "Regularised", "Row", "adapt", "batches", "components", "covariances", "decompose",
    "linear_modules", "peft_for", "regularised", "save", "sequences", "to_lora",
]  # fmt: skip
