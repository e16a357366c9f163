"""The decomposer while it is trained: a Hugging Face causal language model with what of it may change, a value head, and its folders.

With `lora_rank` above 0 the model is frozen and LoRA adapters (PEFT) are trained, of which the policy gradient may move only those of the
last layers, as published; with 0 the model's own weights are. Its folders are ordinary ones: `adapter_model.safetensors` for PEFT, or
`model.safetensors` for transformers, with the tokenizer. What this does not cover: the published 8-bit base, several devices.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keystep.errors import BadInput, MissingExtra
from keystep.lm.local import fingerprint
from keystep.nn.tuning import loaded, prompt_tokens, room

if TYPE_CHECKING:
    from keystep.solve.daslam.train import Settings

_LAYER = re.compile(r"\.(?:layers|h|blocks?)\.(\d+)\.")


class Policy:
    """The model at `folder` (or a name on the hub), made trainable.

    Raises:
        MissingExtra: torch, transformers or peft is not installed.
        BadInput: there is no such model, or it has none of the modules that were to get an adapter.
    """

    def __init__(self, folder: str, settings: Settings, seed: int) -> None:
        self.settings, self.folder = settings, folder
        model, self.tokenizer = loaded(folder, settings.device, settings.dtype)
        import torch

        from keystep.nn.policy_gradient import ValueHead

        torch.manual_seed(seed)
        self.print, self.room, self.end, self.device = fingerprint(model), room(model), int(self.tokenizer.eos_token_id), model.device
        self.head = ValueHead(model.config.get_text_config().hidden_size).to(self.device)
        self.model: Any = _with_lora(model, settings, folder).to(self.device) if settings.lora_rank else model

    # Texts and tokens.

    def prompt(self, text: str) -> list[int]:
        """The tokens of a prompt, as `keystep.lm.Local` would give them to the trained model."""
        return prompt_tokens(self.tokenizer, text)

    def answer(self, text: str) -> list[int]:
        """The tokens of an answer, with its end."""
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*tokens, self.end]

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    # What changes.

    def moved(self, layers: int = 0) -> dict[str, Any]:
        """The parameters that training moves, by name: all that may change, or only those of the last `layers` layers."""
        found = {name: weight for name, weight in self.model.named_parameters() if not self.settings.lora_rank or "lora_" in name}
        places = {name: int(match.group(1)) for name in found if (match := _LAYER.search(name))}
        if not layers or not places:
            return found
        first = max(places.values()) + 1 - layers
        return {name: weight for name, weight in found.items() if places.get(name, -1) >= first}

    def only(self, weights: dict[str, Any]) -> None:
        """Have gradients for these parameters alone."""
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(name in weights)

    # Folders.

    def save(self, folder: Path) -> None:
        """The adapter or the model, and the tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.settings.lora_rank:  # says which weights it is for, wherever the folder is opened from
            config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
            config["base_model_name_or_path"] = self.folder
            (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")

    def load(self, folder: Path) -> None:
        """Weights that `save` wrote."""
        if self.settings.lora_rank:
            import peft

            peft.set_peft_model_state_dict(self.model, peft.load_peft_weights(str(folder), device=str(self.device)))
            return
        import transformers

        saved: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=self.settings.dtype, use_safetensors=True)
        self.model.load_state_dict(saved.state_dict())


def _with_lora(model: Any, settings: Settings, folder: str) -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtra("training adapters", "train") from None
    config = peft.LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
        target_modules=list(settings.lora_modules), task_type="CAUSAL_LM",
    )  # fmt: skip
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        names = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight")})
        mend = f"this model has {', '.join(names[:12])}"
        raise BadInput(f"none of them is in the model {folder}", field="lora_modules", value=settings.lora_modules, mend=mend) from error
