"""Named points where a test can stop the process: KEYSTEP_FAULT=after-write:137 sends SIGKILL the 137th time `after-write` is passed,
KEYSTEP_FAULT=after-write:137:STOP another signal."""

from __future__ import annotations

import os
import signal

POINTS = ("before-ask", "after-vote", "before-write", "after-write", "before-sync", "after-sync", "before-finish")
EFFECT_POINTS = ("after-intent", "after-effect")  # of a skill with an effect outside

_name, _count, _signal = (*os.environ.get("KEYSTEP_FAULT", "").split(":"), "", "")[:3]
_left = int(_count or 1) if _name in POINTS + EFFECT_POINTS else 0


def point(name: str) -> None:
    """Pass the point `name`; nothing happens unless the environment armed it."""
    global _left
    if _left and name == _name:
        _left -= 1
        if not _left:
            os.kill(os.getpid(), getattr(signal, f"SIG{_signal or 'KILL'}"))
