"""Where a piece of training stands, in one safetensors file: stopped at any step, it goes on as if it had not been stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from keystep.errors import ChangedWork
from keystep.files import whole
from keystep.nn.checkpoint import stored_tensors

Tensors = Mapping[str, Tensor]


def save_state(file: Path, step: int, tensors: Tensors, identity: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> None:
    """`identity` is what decides the result; `more` what goes with the step, as JSON."""
    from safetensors.torch import save_file

    about = {"step": json.dumps(step), "identity": json.dumps(identity, sort_keys=True), "more": json.dumps(more or {})}
    with whole(file, replace=True) as part:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, part, metadata=about)


def load_state(file: Path | None, identity: Mapping[str, Any]) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """(step, tensors, more) of an earlier try of the same work; None where there was none.

    Raises:
        ChangedWork: the file is of other work; the message names what differs.
        BadInput: it is no whole safetensors file.
    """
    if file is None or not file.exists():
        return None
    from safetensors import safe_open

    stored_tensors(file)
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata() or {}
        kept = json.loads(about.get("identity", "{}"))
        now = json.loads(json.dumps(identity, sort_keys=True))
        for key in sorted(kept.keys() | now.keys()):
            if kept.get(key) != now.get(key):
                problem = f"an unfinished try had {key} = {kept.get(key)!r}, this one has {now.get(key)!r}"
                raise ChangedWork(problem, field=str(file), mend="take the old settings to go on, or delete the file to begin anew")
        names = opened.keys()
        return json.loads(about["step"]), {name: opened.get_tensor(name) for name in names}, json.loads(about["more"])


def optimizer_tensors(optimizer: Any, prefix: str = "optimizer") -> dict[str, Tensor]:
    """The tensors of a torch optimizer's state, by the number of the parameter and the name within its state."""
    found: dict[str, Tensor] = {}
    for number, state in optimizer.state_dict()["state"].items():
        found |= {f"{prefix}.{number}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    return found


def restore_optimizer(optimizer: Any, tensors: Tensors, prefix: str = "optimizer") -> None:
    """The reverse of `optimizer_tensors`, on a new optimizer of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            _, number, key = name.rsplit(".", 2)
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
