"""Where things are in a decoder of transformers, whatever its architecture calls them."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from keystep.errors import BadInput

# In the order tried: an earlier one that is part of the name wins.
KINDS = {
    "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj|attn\\.c_proj|out_proj", "qkv": "c_attn|qkv_proj", "gate": "gate_proj",
    "gate+up": "gate_up_proj", "up": "up_proj|c_fc|fc1", "down": "down_proj|mlp\\.c_proj|fc2", "norm": "norm|ln_",
}  # fmt: skip


def layers_name(model: nn.Module) -> str:
    """The name of the list of transformer layers: `model.layers`, `transformer.h`, ….

    Raises:
        BadInput: no list of modules has as many entries as the config has layers.
    """
    config: Any = model.config
    wanted: int = config.get_text_config().num_hidden_layers
    found = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == wanted]
    if not found:
        raise BadInput(
            "has no list of transformer layers", field="model", value=type(model).__name__, mend="take a decoder of transformers"
        )
    return str(min(found, key=lambda name: name.count(".")))


def layer_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the transformer layers, by name: all but embeddings, head and the norm after the last layer."""
    prefix = layers_name(model) + "."
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith(prefix)}


def place(name: str) -> tuple[int | None, str]:
    """(number of the layer or None, kind) of a parameter's name; the kind is one of `KINDS` or the name's last parts."""
    number = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", name)
    kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), None)
    if kind is None:
        kind = name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1]
    return (int(number.group(1)) if number else None), kind
