"""What holds for all tests: a busy machine fails none; an error that nobody can catch does, except where the stack was used up."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Texts nested deeper than the stack are read in many tests. Whatever is collected meanwhile, from whichever test, is finalized where
    no call is left, and fails with a RecursionError that says nothing of the code."""
    failed = sys.unraisablehook  # pytest's own: trylast

    def unless_the_stack_was_used_up(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, RecursionError):
            failed(unraisable)

    sys.unraisablehook = unless_the_stack_was_used_up
