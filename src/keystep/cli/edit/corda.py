"""`keystep edit adapt` and `to-lora`: adapters that begin where a data sample says, and the way back to an ordinary LoRA."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from keystep.cli.bar import steps_bar
from keystep.cli.defaults import AsJson, number_option, whole_option
from keystep.cli.edit.options import device_of, settings_of

FEW = 1.0  # tokens of the sample for each input of a module, below which the covariance cannot have full rank


def adapt(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the model that is to be fine-tuned.")],
    data: Annotated[Path, typer.Option(metavar="FILE", help='The sample (.jsonl): {"prompt", "answer"} or {"text"}.')],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the adapter goes, and its base.")],
    mode: Annotated[str, typer.Option(help="knowledge (keep what --data shows) or instruction (learn it quickly).")] = "knowledge",
    rank: Annotated[int | None, whole_option("Of the adapter (default: 16).", "Adapter")] = None,
    alpha: Annotated[int | None, whole_option("lora_alpha (default: the rank).", "Adapter")] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Modules that get one, as q_proj (default: all).", rich_help_panel="Adapter")
    ] = None,
    samples: Annotated[int | None, whole_option("Most sequences of the sample (default: 256).", "Sample")] = None,
    length: Annotated[int | None, whole_option("Cut windows of so many tokens out of all examples.", "Sample")] = None,
    part: Annotated[str | None, typer.Option(help="Of examples: prompt (default to keep) or whole.", rich_help_panel="Sample")] = None,
    normalise: Annotated[str | None, typer.Option(help="Of a sequence: max (as published) or none.", rich_help_panel="Sample")] = None,
    damping: Annotated[float | None, number_option("Of the inverse, at first (default: 0.01).", "Sample")] = None,
    batch: Annotated[int | None, whole_option("Sequences at once.", "Sample")] = None,
    limit: Annotated[int | None, whole_option("Most examples read of the file.", "Sample")] = None,
    seed: Annotated[int, whole_option("Of every random draw.", "Sample")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ….")] = "cpu",
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:  # fmt: skip
    """Write a LoRA adapter of MODEL for training, in the directions that --data uses least (to keep it) or most (to learn it).

    FOLDER is an ordinary PEFT adapter, its base in FOLDER/base; the two together are what MODEL was. Stopped, the same command goes on.
    """
    from keystep.edit.corda import Corda, batches, peft_for, save, sequences
    from keystep.edit.corda import adapt as initialise
    from keystep.files import free_for
    from keystep.nn.checkpoint import checkpoint_tensors, fingerprint, load_model, load_tokenizer
    from keystep.nn.examples import Examples, read_examples, sample_fingerprint

    given = {"mode": mode, "rank": rank, "alpha": alpha, "targets": tuple(target or ()), "samples": samples, "length": length, "part": part,
             "normalise": normalise, "damping": damping, "batch": batch, "seed": seed}  # fmt: skip
    settings = settings_of(Corda, given)
    free_for(out)
    peft_for("initialising adapters")
    examples_read = read_examples(data, limit=limit)
    loaded, tokenizer = load_model(model, device=device_of(device)), load_tokenizer(model)
    text = loaded.config.get_text_config()
    examples = Examples(examples_read, tokenizer, longest=None if length else getattr(text, "max_position_embeddings", None))
    rows = sequences(examples, settings)
    sample = batches(rows, settings.batch, padding=examples.padding, device=loaded.device)
    before = _logits(loaded, sample[0])
    state = out.with_name(f"{out.name}.unfinished.safetensors")
    print_ = sample_fingerprint(fingerprint(checkpoint_tensors(model)), rows)
    try:
        with steps_bar(text.num_hidden_layers, "layers", quiet) as tick:
            found = initialise(loaded, sample, settings, state=state, fingerprint=print_, tick=tick)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on", err=True)
        raise typer.Exit(3) from None
    moved = float((_logits(found.model, sample[0]) - before).abs().max())
    save(found, out, source=model, settings=settings)
    state.unlink(missing_ok=True)
    tokens, least = sum(map(len, rows)), min(found.rows, key=lambda row: row.tokens_per_input)
    result = {"out": str(out), "base": str(out / "base"), "mode": settings.mode, "sequences": len(rows), "tokens": tokens,
              "moved": moved, "modules": [asdict(row) for row in found.rows]}  # fmt: skip
    if as_json:
        typer.echo(json.dumps(result))
    else:
        typer.echo(f"wrote {out}: rank {settings.rank} in {len(found.rows)} modules, from {len(rows)} sequences of {tokens:,} tokens")
        damped = max(row.damping for row in found.rows)
        typer.echo(f"logits moved by at most {moved:.1e}; damping up to {damped:g}; the adapter fits {out / 'base'} only")
    if least.tokens_per_input < FEW:
        typer.echo(f"{least.module} has {least.inputs} inputs and saw {tokens:,} tokens; give more data (--samples)", err=True)


def _logits(model: Any, batch: dict[str, Any]) -> Any:
    """Of the first batch's tokens; padding left out."""
    import torch

    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"].bool()].float()


def to_lora(
    initial: Annotated[Path, typer.Argument(metavar="INITIAL", help="Folder of `keystep edit adapt`.")],
    trained: Annotated[Path, typer.Argument(metavar="TRAINED", help="Folder of the adapter after training.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the LoRA goes.")],
    model: Annotated[Path | None, typer.Option(metavar="MODEL", help="The base it names (default: that of INITIAL).")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a trained adapter as an ordinary LoRA, of twice the rank, on the model as it was before `keystep edit adapt`."""
    from keystep.edit.corda import to_lora as convert

    rank = convert(initial, trained, out, model=model)
    typer.echo(json.dumps({"out": str(out), "rank": rank}) if as_json else f"wrote {out}: a LoRA of rank {rank}")
