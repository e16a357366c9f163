"""`keystep edit forget` and `blocked`: a guard with which a model forgets a skill, and what a guard would refuse."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep.cli.bar import loss_bar, steps_bar
from keystep.cli.defaults import AsJson, number_option, whole_option
from keystep.cli.edit.options import by_flags, device_of, settings_of
from keystep.errors import BadInput

if TYPE_CHECKING:
    from keystep.edit.unlearn import Relearned, Row
    from keystep.nn.examples import Examples

REFUSAL = "I cannot help with that."
ENOUGH = 100  # examples of a skill, below which a warning
MANY = 0.1  # false hits, above which a warning


def forget(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the model.")],
    skill: Annotated[list[Path], typer.Option(metavar="FILE", help='What is to be forgotten (.jsonl): {"prompt", "answer"} or {"text"}.')],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the guard goes.")],
    retain: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="What is to be kept; several times.")] = None,
    method: Annotated[str, typer.Option(help="key-space (abstain), neuron-adjust, or the baseline pruning.")] = "key-space",
    refusal: Annotated[str, typer.Option(metavar="TEXT", help="What is answered instead.", rich_help_panel="Abstaining")] = REFUSAL,
    layer: Annotated[int | None, whole_option("Of the box, from 0 (default: the most selective one).", "Abstaining")] = None,
    alpha: Annotated[float | None, number_option("Size of the box (default: the smallest that holds --hold).", "Abstaining")] = None,
    hold: Annotated[float | None, number_option("Share of the skill's prompts in the box (default: 0.95).", "Abstaining")] = None,
    watch: Annotated[
        str | None, typer.Option(help="all (default): after every token too; prompt: after the prompt only.", rich_help_panel="Abstaining")
    ] = None,
    share: Annotated[float | None, number_option("Of all neurons (default: 0.03).", "Changing neurons")] = None,
    part: Annotated[str | None, typer.Option(help="Of examples: whole (default) or answer.", rich_help_panel="Changing neurons")] = None,
    relearn: Annotated[int, whole_option("Most updates of the relearning probe; 0 leaves it out.", "Report")] = 32,
    relearn_rate: Annotated[float, number_option("Of those updates (AdamW).", "Report")] = 1e-4,
    with_model: Annotated[bool, typer.Option("--with-model", help="Write the model into FOLDER too.")] = False,
    probe: Annotated[int | None, whole_option("Most examples probed of each file (default: 200).", "Data")] = None,
    limit: Annotated[int, whole_option("Most examples read of each file.", "Data")] = 1000,
    batch: Annotated[int | None, whole_option("Examples at once (default: 8).", "Data")] = None,
    seed: Annotated[int, whole_option("Of every random draw.", "Data")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ….")] = "cpu",
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:  # fmt: skip
    """Make a guard with which MODEL forgets a skill, at once and reversibly; its weights stay as they are.

    A fifth of each file chooses the box, a fifth is reported on. Stopped, the same command goes on.
    """
    from keystep.edit.unlearn import Forget, Relearn, batches_of, report, save
    from keystep.edit.unlearn import forget as make
    from keystep.edit.unlearn import relearn as back
    from keystep.files import free_for
    from keystep.nn.checkpoint import checkpoint_tensors, fingerprint, load_model, load_tokenizer
    from keystep.nn.examples import sample_fingerprint

    given = {"method": method, "layer": layer, "alpha": alpha, "hold": hold, "watch": watch, "share": share, "part": part,
             "probe": probe, "batch": batch, "seed": seed}  # fmt: skip
    settings, flags = settings_of(Forget, given), (*given, "skill", "retain", "refusal")
    for name, value, low in (("--relearn", relearn, 0), ("--limit", limit, 1)):
        if value < low:
            raise BadInput(f"is at least {low}", field=name, value=value)
    if not 0 < relearn_rate < 1:
        raise BadInput("is above 0 and below 1", field="--relearn-rate", value=relearn_rate)
    free_for(out)
    read = _read([*skill, *(retain or [])], limit, "--skill, --retain")
    loaded, tokenizer = load_model(model, device=device_of(device)), load_tokenizer(model)
    sets = _encoded(read, loaded, tokenizer)
    skills, kept = ({file.stem: sets[file] for file in files} for files in (skill, retain or []))
    answer: list[int] = tokenizer(refusal, add_special_tokens=False)["input_ids"]
    end, size = tokenizer.eos_token_id, settings.batch
    state = out.with_name(f"{out.name}.unfinished.safetensors")
    print_ = sample_fingerprint(fingerprint(checkpoint_tensors(model)), [row.tokens for each in sets.values() for row in each.rows])
    back_again: dict[str, Relearned] = {}
    try:
        total = by_flags(flags, batches_of, loaded, skills, kept, settings) + len(sets)
        with steps_bar(total, "probing", quiet) as tick:
            found = by_flags(flags, make, loaded, skills, kept, settings, refusal=answer, end=end, state=state, fingerprint=print_,
                             tick=tick)  # fmt: skip
            tests = {file.stem: each.some(found.splits[file.stem].test) for file, each in sets.items()}
            rows = report(loaded, found.guard, {name: tests[name] for name in skills}, {name: tests[name] for name in kept}, end=end,
                          batch=size, tick=tick)  # fmt: skip
        if relearn:
            with loss_bar(2 * relearn * len(skills), quiet) as told:
                for name, each in skills.items():
                    if rows[name].before.accuracy:
                        tuning = Relearn(relearn, relearn_rate, seed=seed)
                        train = each.some(found.splits[name].probe)
                        back_again[name] = back(loaded, found.guard, train, tests[name], tuning, end=end, batch=size, tick=told)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on", err=True)
        raise typer.Exit(3) from None
    guard = found.guard
    told_of = {"report": {name: _row(row) for name, row in rows.items()}, "relearned": {k: asdict(v) for k, v in back_again.items()},
               "layers": {name: [each._asdict() for each in judged] for name, judged in found.layers.items()}}  # fmt: skip
    save(replace(guard, about={**guard.about, **told_of}), out, model=loaded if with_model else None,
         tokenizer=tokenizer if with_model else None)  # fmt: skip
    state.unlink(missing_ok=True)
    boxes = [{"skill": box.name, "layer": box.layer, "alpha": box.alpha, "k": box.k} for box in guard.boxes]
    changed: tuple[Any, ...] = (*guard.shifts, *guard.zeroed)
    neurons = sum(len(each.neurons) for each in changed)
    result = {
        "out": str(out),
        "method": settings.method,
        "boxes": boxes,
        "neurons": neurons,
        "refusal": tokenizer.decode(answer),
        **told_of,
    }
    if as_json:
        typer.echo(json.dumps(result))
        return
    _tell(out, result, rows, back_again)
    for name, each in skills.items():
        if len(each) < ENOUGH:
            typer.echo(f"{name} has only {len(each)} examples; the figures are rough (better: 300)", err=True)
    for box in guard.boxes:
        [row] = [each for each in found.layers[box.name] if each.layer == box.layer]
        if row.false_hits is not None and row.false_hits > MANY:
            mend = "" if settings.watch == "prompt" else "; try --watch prompt"
            typer.echo(f"the box of {box.name} blocks {row.false_hits:.0%} of what is to be kept{mend}, or a smaller --hold", err=True)
    if settings.method == "key-space" and not kept:
        typer.echo("nothing to be kept was given: the box is in the last layer, and what else it blocks is not known (--retain)", err=True)


def _read(files: Sequence[Path], limit: int, flag: str) -> dict[Path, Any]:
    from keystep.nn.examples import read_examples

    found: dict[Path, Any] = {}
    for file in files:
        twin = next((other for other in found if other.stem == file.stem), None)
        if twin is not None:
            raise BadInput(f"has the name of {twin}", field=flag, value=str(file), mend="give every file once, under its own name")
        found[file] = read_examples(file, limit=limit)
    return found


def _encoded(read: dict[Path, Any], model: Any, tokenizer: Any) -> dict[Path, Examples]:
    from keystep.nn.examples import Examples

    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return {file: Examples(rows, tokenizer, longest=longest) for file, rows in read.items()}


def _row(row: Row) -> dict[str, Any]:
    return {**asdict(row), "drop": row.drop}


def _tell(out: Path, result: dict[str, Any], rows: dict[str, Row], relearned: dict[str, Relearned]) -> None:
    what = f"{result['neurons']} neurons" if result["neurons"] else ", ".join(
        f"{box['skill']} in layer {box['layer']} at α = {box['alpha']:.3g}" for box in result["boxes"]
    )  # fmt: skip
    typer.echo(f"wrote {out}: {result['method']}, {what}")
    for name, row in rows.items():
        what = "forget" if row.forget else "keep"
        line = f"{what:6} {name}: right {row.before.accuracy:.1%} before, {row.after.accuracy:.1%} with the guard"
        typer.echo(line + (f", abstains {row.after.abstains:.1%}" if result["boxes"] else ""))
    for name, found in relearned.items():
        after = f"after {found.updates} updates" if found.updates is not None else f"not after {found.course[-1]['updates']:.0f} updates"
        typer.echo(f"relearned {name}: {after}")


def blocked(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the model.")],
    guard: Annotated[Path, typer.Argument(metavar="GUARD", help="Folder of `keystep edit forget`.")],
    data: Annotated[list[Path], typer.Option(metavar="FILE", help="Examples (.jsonl); several times.")],
    limit: Annotated[int, whole_option("Most examples read of each file.", "Data")] = 1000,
    batch: Annotated[int, whole_option("Examples at once.", "Data")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, ….")] = "cpu",
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """How right MODEL is with GUARD and without, and how much it refuses, on examples of any kind: before it is switched on."""
    from keystep.edit.unlearn import load, report
    from keystep.nn.checkpoint import load_model, load_tokenizer

    for name, value in (("--limit", limit), ("--batch", batch)):
        if value < 1:
            raise BadInput("is at least 1", field=name, value=value)
    made = load(guard)
    read = _read(data, limit, "--data")
    loaded, tokenizer = load_model(model, device=device_of(device)), load_tokenizer(model)
    sets = {file.stem: each for file, each in _encoded(read, loaded, tokenizer).items()}
    with steps_bar(len(sets), "files", quiet) as tick:
        rows = report(loaded, made, {}, sets, end=tokenizer.eos_token_id, batch=batch, tick=tick)
    if as_json:
        typer.echo(json.dumps({"guard": str(guard), "report": {name: _row(row) for name, row in rows.items()}}))
        return
    for name, row in rows.items():
        line = f"{name}: right {row.before.accuracy:.1%} before, {row.after.accuracy:.1%} with the guard"
        typer.echo(line + (f", abstains {row.after.abstains:.1%}" if made.boxes else ""))
