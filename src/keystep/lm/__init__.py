"""Language models: one protocol (`LM`), the backends behind it, and `lm(name)`, which makes any of them by name.

Backends are imported when first used (PEP 562), so that each loads only what it needs.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keystep.lm.base import LM

_WHERE = {
    "base": ["LM", "Message", "Request", "Sample", "ToolCall"],
    "embedded.model": ["Embedded"],
    "endpoint": ["Endpoint"],
    "local": ["Local"],
    "replay": ["Record", "Replay"],
    "rotation": ["Rotation"],
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}

NAMES = (
    "embedded, embedded-large, one member of them (embedded:2), http://HOST/v1#MODEL, openai:MODEL, hf:FOLDER_OR_NAME, replay:FILE, "
    "or several of these in turn, with commas between"
)

__all__ = [*sorted(_MODULE), "lm"]


def lm(name: str, **options: Any) -> LM:
    """The model of this name; `options` go to the backend's constructor. Of several names, each gets all options.

    Raises:
        BadInput: there is no such model, or it does not take these options.
    """
    from keystep.errors import BadInput

    parts = [part.strip() for part in name.split(",")]
    if len(parts) > 1:
        from keystep.lm.rotation import Rotation

        return Rotation([lm(part, **options) for part in parts])
    kind, _, rest = name.partition(":")
    make: Any = None
    given: tuple[str, ...] = ()
    if kind in ("embedded", "embedded-large"):
        from keystep.lm.embedded.model import Embedded

        make, given = Embedded, (name,)
    elif kind in ("http", "https") and name.partition("#")[2]:
        from keystep.lm.endpoint import Endpoint

        address, _, model = name.partition("#")
        make, given = Endpoint, (model, address)
    elif kind == "openai" and rest:
        from keystep.lm.endpoint import Endpoint

        make, given = Endpoint, (rest,)
    elif kind == "hf" and rest:
        from keystep.lm.local import Local

        make, given = Local, (rest,)
    elif kind == "replay" and rest:
        from keystep.lm.replay import Replay

        make, given = Replay, (rest,)
    if make is None:
        shown = name if "//" not in name else None  # an address may hold a password
        raise BadInput("no such model", field="model", value=shown, mend=f"there are: {NAMES}")
    try:
        made: LM = make(*given, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise BadInput(f"this model does not take these options: {', '.join(options)}", field="model", value=name) from error
    return made


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'keystep.lm' has no attribute {name!r}")
    return getattr(import_module(f"keystep.lm.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__


class _Callable(ModuleType):
    """`ks.lm` is this module once it is imported, and `ks.lm("embedded")` is to work all the same."""

    def __call__(self, name: str, **options: Any) -> LM:
        return lm(name, **options)


sys.modules[__name__].__class__ = _Callable
