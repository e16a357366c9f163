"""The ensembles of small models that come with keystep: `hanoi` and `ledger` hold their prompts, `decoder` computes, `model` asks.

Names are looked up when first used, so that the prompts alone load no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["Embedded", "Ensemble", "Member", "answer_probabilities", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'keystep.lm.embedded' has no attribute {name!r}")
    return getattr(import_module("keystep.lm.embedded.model"), name)
