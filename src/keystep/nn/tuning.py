"""What every fine-tuning of a Hugging Face causal language model begins and ends with: the model and its tokenizer, prompts as tokens,
supervised fine-tuning by `trl.SFTTrainer`, an optimiser's state on disk.

Weights and states are safetensors and JSON. What this does not cover: adapters, several devices. The checkpoints that a supervised
fine-tuning goes on from are as `transformers` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from keystep.errors import BadInput, MissingExtra
from keystep.files import write_text

Tell = Callable[[str, int, int, str], None]  # what goes on, how much of it is done, of how much, and a word on how it goes


def loaded(folder: str, device: str | None = None, dtype: str = "float32") -> tuple[Any, Any]:
    """The model, on its device (default: cuda where there is one), and its tokenizer, which has an end token.

    Raises:
        MissingExtra: torch or transformers is not installed.
        BadInput: there is no such model, or it cannot be trained.
    """
    try:
        import torch
        import transformers
        from safetensors import SafetensorError
    except ImportError:
        raise MissingExtra("training a language model", "train") from None
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise BadInput("no such dtype", field="dtype", value=dtype, mend="for instance float32 or bfloat16")
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        mend = "give a folder with config.json, a tokenizer and *.safetensors, or a name on the hub"
        raise BadInput(f"cannot be loaded ({str(error).splitlines()[0]})", field="MODEL", value=folder, mend=mend) from error
    if tokenizer.eos_token_id is None:
        raise BadInput("its tokenizer has no end token", field="MODEL", value=folder, mend="set tokenizer.eos_token and save it")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def check_seed(seed: int) -> None:
    """That the libraries take this seed.

    Raises:
        BadInput: they do not.
    """
    if not 0 <= seed < 2**32:
        raise BadInput("is from 0 to 4294967295", field="--seed", value=seed)


def room(model: Any) -> int:
    """Tokens that the model reads at most."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31


def prompt_tokens(tokenizer: Any, text: str, begun: str = "") -> list[int]:
    """A prompt, and how the answer to it begins, as `keystep.lm.Local` gives them to a model."""
    chat = bool(tokenizer.chat_template)
    if chat:
        text = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    tokens: list[int] = tokenizer(text + begun, add_special_tokens=not chat)["input_ids"]
    return tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Supervised:
    """Of AdamW and its schedule: up in a line over the share `warmup` of the steps, down along a cosine. `micro_batch` rows go through the
    model at once; `batch` is that of one step."""

    steps: int = 1000
    rate: float = 2e-5
    batch: int = 160
    micro_batch: int = 8
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    decay: float = 0.01
    max_norm: float = 1.0
    save_every: int = 200


def fine_tune(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, list[int]]], folder: Path, settings: Supervised, seed: int, tell: Tell
) -> list[float]:  # fmt: skip
    """Supervised fine-tuning on rows of `input_ids` and `labels` (-100 where the loss does not count a token); gives the losses.

    Its checkpoints lie in `folder`, and it goes on from the last one there is.

    Raises:
        MissingExtra: trl or datasets is not installed.
    """
    try:
        import transformers

        datasets, trl = import_module("datasets"), import_module("trl")
    except ImportError:
        raise MissingExtra("supervised fine-tuning", "train") from None

    class Told(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            tell("fine-tuning", state.global_step, state.max_steps, "")

    batch = min(settings.batch, len(rows))
    micro = min(settings.micro_batch, batch)
    config = trl.SFTConfig(
        output_dir=str(folder), max_steps=settings.steps, learning_rate=settings.rate, per_device_train_batch_size=micro,
        gradient_accumulation_steps=-(-batch // micro), warmup_steps=round(settings.warmup * settings.steps), lr_scheduler_type="cosine",
        adam_beta1=settings.betas[0], adam_beta2=settings.betas[1], weight_decay=settings.decay, max_grad_norm=settings.max_norm, seed=seed,
        data_seed=seed, max_length=None, save_strategy="steps", save_steps=settings.save_every, save_total_limit=1, report_to=[],
        disable_tqdm=True, bf16=False, gradient_checkpointing=False, use_cpu=str(model.device) == "cpu", dataloader_pin_memory=False,
        logging_strategy="steps", logging_steps=max(1, settings.steps // 100),
    )  # fmt: skip
    examples = datasets.Dataset.from_list(list(rows))
    trainer = trl.SFTTrainer(model, config, train_dataset=examples, processing_class=tokenizer, callbacks=[Told()])
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    return [round(entry["loss"], 6) for entry in trainer.state.log_history if "loss" in entry]


def save_optimiser(optimiser: Any, file: Path) -> None:
    """The moments of a torch optimiser, as safetensors."""
    from safetensors.torch import save_file

    from keystep.nn.state import optimizer_tensors

    save_file({name: value.detach().contiguous().cpu() for name, value in optimizer_tensors(optimiser).items()}, file)


def load_optimiser(optimiser: Any, file: Path) -> None:
    """What `save_optimiser` wrote."""
    from safetensors.torch import load_file

    from keystep.nn.state import restore_optimizer

    restore_optimizer(optimiser, load_file(file))


def write_json(file: Path, value: Any) -> None:
    """A JSON file that takes its place when it is whole."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False))
