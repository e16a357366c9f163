"""What the commands of `keystep edit` read alike: the device, and settings whose errors are told by the flag they came from."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

from keystep.errors import BadInput

T = TypeVar("T")


def device_of(name: str) -> Any:
    """The torch device of --device.

    Raises:
        BadInput: there is none of this name, or it cannot be used here.
    """
    import torch

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"cannot be used ({reason})", field="--device", value=name, mend="for instance cpu") from None


def settings_of(make: Callable[..., T], given: Mapping[str, Any]) -> T:
    """What `make` makes of the settings that are given (not None); its errors name the flag instead of the setting.

    Raises:
        BadInput: as `make`.
    """
    return by_flags(given, make, **{key: value for key, value in given.items() if value is not None})


def by_flags(flags: Container[str], work: Callable[..., T], *given: Any, **options: Any) -> T:
    """What `work` gives; its errors in one of these fields name the flag.

    Raises:
        BadInput: as `work`.
    """
    try:
        return work(*given, **options)
    except BadInput as error:
        if error.field not in flags:
            raise
        raise BadInput(error.problem, field=f"--{error.field}", value=error.value, mend=error.mend) from None
