"""Where things are in a decoder of transformers, whatever its architecture calls them."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import nn

from keystep.errors import BadInput

# In the order tried: an earlier one that is part of the name wins.
KINDS = {
    "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj|attn\\.c_proj|out_proj", "qkv": "c_attn|qkv_proj", "gate": "gate_proj",
    "gate+up": "gate_up_proj", "up": "up_proj|c_fc|fc1", "down": "down_proj|mlp\\.c_proj|fc2", "norm": "norm|ln_",
}  # fmt: skip
# Of a feed-forward block: what gives the pre-activations, and what reads the activations. In the order tried.
GATES = r"(gate_proj|mlp\.c_fc|dense_h_to_4h|fc1|fc_in)$"
DOWNS = r"(down_proj|mlp\.c_proj|dense_4h_to_h|fc2|fc_out)$"


class FeedForward(NamedTuple):
    """The feed-forward block of layer `number`: names of the module that gives its pre-activations ("" where that gives something else
    besides) and of the one that reads its activations, of which there are `width`."""

    number: int
    gate: str
    down: str
    width: int


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


def feed_forward_blocks(model: nn.Module) -> list[FeedForward]:
    """The feed-forward blocks of a decoder, layer by layer; plain and gated ones.

    Raises:
        BadInput: a layer has none, several, or only experts.
    """
    prefix, found = layers_name(model), []
    layers: Any = model.get_submodule(prefix)
    for number, layer in enumerate(layers):
        matrices = [name for name, module in layer.named_modules() if getattr(getattr(module, "weight", None), "ndim", 0) == 2]
        plain = [name for name in matrices if "expert" not in name]
        gates, downs = ([name for name in plain if re.search(pattern, name)] for pattern in (GATES, DOWNS))
        if len(downs) != 1 or len(gates) > 1:
            problem = f"{len(downs) or 'no'} feed-forward block{'s' if len(downs) > 1 else ''} that can be told in layer {number}"
            raise BadInput(f"has {problem}", field="model", value=type(model).__name__, mend="take a decoder without experts")
        weight = layer.get_submodule(downs[0]).weight
        width = weight.shape[1] if isinstance(layer.get_submodule(downs[0]), nn.Linear) else weight.shape[0]  # Conv1D is the transpose
        found.append(FeedForward(number, f"{prefix}.{number}.{gates[0]}" if gates else "", f"{prefix}.{number}.{downs[0]}", width))
    return found


def place(name: str) -> tuple[int | None, str]:
    """(number of the layer or None, kind) of a parameter's name; the kind is one of `KINDS` or the name's last parts."""
    number = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", name)
    kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), None)
    if kind is None:
        kind = name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1]
    return (int(number.group(1)) if number else None), kind
