"""`keystep edit locate`, `graft`, `purge`, `keep` and `overlap`: the few weights in which a tuned skill lives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep.cli.bar import loss_bar
from keystep.cli.defaults import AsJson, number_option, whole_option
from keystep.cli.edit.options import device_of, settings_of
from keystep.errors import BadInput

if TYPE_CHECKING:
    from keystep.edit.localize import Patch
    from keystep.measure.chart import Chart

EVEN = 0.5  # from here on a warning; see `Located.evenness`
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Where the checkpoint goes.")]
Patches = Annotated[list[Path], typer.Argument(metavar="PATCH…", help="Files of `keystep edit locate`.")]


def locate(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Folder of the model before it was tuned.")],
    tuned: Annotated[Path, typer.Argument(metavar="TUNED", help="Folder of the model after it was tuned.")],
    data: Annotated[Path, typer.Option(metavar="FILE", help='Examples of the skill (.jsonl): {"prompt", "answer"}.')],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the patch goes (.safetensors).")],
    val: Annotated[Path | None, typer.Option(metavar="FILE", help="Examples to choose the step on (default: a fifth of --data).")] = None,
    test: Annotated[Path | None, typer.Option(metavar="FILE", help="Examples for the report (default: those to choose on).")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw where the patch is, layer by layer (.svg).")] = None,
    name: Annotated[str, typer.Option(help="Of the patch (default: the name of its file).")] = "",
    published: Annotated[bool, typer.Option("--published", help="The settings of the paper's program.", rich_help_panel="Mask")] = False,
    sparsity: Annotated[float | None, number_option("Most of the parameters that may change (default: 0.03).", "Mask")] = None,
    start: Annotated[str | None, typer.Option(help="movement, zero, or the file of a patch.", rich_help_panel="Mask")] = None,
    optimizer: Annotated[str | None, typer.Option(help="Of the scores: adam or descent.", rich_help_panel="Mask")] = None,
    keep: Annotated[str | None, typer.Option(help="largest or rounded.", rich_help_panel="Mask")] = None,
    scope: Annotated[str | None, typer.Option(help="layers, or all: embeddings and head too.", rich_help_panel="Mask")] = None,
    rate: Annotated[float | None, number_option("Of the scores.", "Mask")] = None,
    bias: Annotated[float | None, number_option("Of the scores.", "Mask")] = None,
    l1: Annotated[float | None, number_option("Weight of the mask's mean.", "Mask")] = None,
    steps: Annotated[int | None, whole_option("Of learning the mask.", "Mask")] = None,
    batch: Annotated[int | None, whole_option("Examples of a batch.", "Mask")] = None,
    accumulate: Annotated[int | None, whole_option("Batches of a step.", "Mask")] = None,
    limit: Annotated[int | None, whole_option("Most examples read of each file.", "Mask")] = None,
    seed: Annotated[int, whole_option("Of every random draw.", "Mask")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ….")] = "cpu",
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:  # fmt: skip
    """Find the few weights of TUNED that carry its skill, and write them as a patch of BASE.

    Stopped, the same command goes on. Models tuned by SGD have the smaller patches: AdamW moves every weight.
    """
    from keystep.edit.localize import PUBLISHED, Locate, Patch, compare
    from keystep.edit.localize import locate as find
    from keystep.files import free_for
    from keystep.nn.checkpoint import check_same_kind, checkpoint_tensors, fingerprint, load_model, load_tokenizer
    from keystep.nn.examples import Examples, read_examples

    given = {"sparsity": sparsity, "optimizer": optimizer, "keep": keep, "scope": scope, "rate": rate, "bias": bias, "l1": l1,
             "steps": steps, "batch": batch, "accumulate": accumulate, "seed": seed}  # fmt: skip
    from_patch = Patch.load(Path(start)) if start is not None and start not in ("movement", "zero") else None
    settings = settings_of(partial(replace, PUBLISHED if published else Locate()), given | ({} if from_patch else {"start": start}))
    for file in (out, picture):
        if file is not None:
            free_for(file, replace=file is picture)
    check_same_kind(base, tuned)
    model, tokenizer = load_model(base, device=device_of(device)), load_tokenizer(base)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    examples = Examples(read_examples(data, limit=limit), tokenizer, longest=longest)

    def others(file: Path | None) -> Any:
        return None if file is None else Examples(read_examples(file, limit=limit), tokenizer, longest=longest, labels=examples.labels)

    chosen_on, tested = others(val), others(test)
    other = load_model(tuned, device=model.device)
    values = {key: parameter.detach() for key, parameter in other.named_parameters()}
    state = out.with_name(f"{out.name}.unfinished.safetensors")
    try:
        with loss_bar(settings.steps, quiet) as tick:
            found = find(model, values, examples, settings, validation=chosen_on, start=from_patch, state=state,
                         fingerprint=fingerprint(checkpoint_tensors(base)), name=name or out.stem, tick=tick)  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on", err=True)
        raise typer.Exit(3) from None
    patch = found.patch
    grafted = load_model(base, device=model.device)
    patch.apply(grafted)
    which = "validation" if tested is None else "test"
    if tested is None:
        tested = chosen_on or examples.some(examples.split(settings.validation, settings.seed)[1])
    report = compare({"base": model, "tuned": other, "graft": grafted}, tested, device=model.device)
    result = {"out": str(out), "name": patch.name, "parameters": patch.size, "of": patch.of, "density": patch.density,
              "best_step": found.best, "outside": found.outside, "evenness": found.evenness, "judged_on": which, "examples": len(tested),
              "report": report, "course": found.course,
              "histogram": [row._asdict() for row in patch.histogram()], "settings": patch.about["settings"],
              "picture": None if picture is None else str(picture)}  # fmt: skip
    _with_report(patch, {which: report, "examples": len(tested)}).save(out)
    if picture is not None:
        from keystep.measure.chart import save

        save(charts([patch]), picture)
    if as_json:
        typer.echo(json.dumps(result))
        return
    typer.echo(f"{patch.size:,} of {patch.of:,} parameters ({patch.density:.3%}) in {out}, from step {found.best} of {settings.steps}")
    for each, figures in report.items():
        typer.echo(f"{each:6} right {figures['accuracy']:.1%}, calibration error {figures['ece']:.3f}, as tuned {figures['agreement']:.1%}")
    if found.evenness > EVEN:
        typer.echo("all weights moved about equally, as AdamW moves them; tune with SGD, or expect a large patch", err=True)
    if found.outside > 0.01:
        typer.echo(f"{found.outside:.0%} of all movement is outside the scope; --scope all takes it in", err=True)


def _with_report(patch: Patch, report: dict[str, Any]) -> Patch:
    return replace(patch, about={**patch.about, "report": report})


def graft(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Folder of the model that the patches were made for.")],
    patches: Patches,
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Write BASE with the skills of the patches put in."""
    from keystep.files import free_for
    from keystep.nn.checkpoint import checkpoint_tensors, fingerprint, load_model

    loaded = _loaded(patches)
    free_for(out)
    print_ = fingerprint(checkpoint_tensors(base))
    model = load_model(base)
    for file, patch in zip(patches, loaded, strict=True):
        patch.apply(model)
        if patch.base and patch.base != print_:
            raise BadInput("was made for another base", field="PATCH", value=str(file), mend="give that one, with all patches at once")
    _write(model, base, out, loaded, as_json, "put in")


def purge(
    tuned: Annotated[Path, typer.Argument(metavar="TUNED", help="Folder of the model that has the skills.")],
    patches: Patches,
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Write TUNED with the weights of the patches set back to the base's: without those skills."""
    from keystep.files import free_for
    from keystep.nn.checkpoint import load_model

    loaded = _loaded(patches)
    free_for(out)
    model = load_model(tuned)
    for patch in loaded:
        patch.revert(model)
    _write(model, tuned, out, loaded, as_json, "set back")


def keep(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Folder of the model before it was tuned.")],
    tuned: Annotated[Path, typer.Argument(metavar="TUNED", help="Folder of the tuned model whose values are taken.")],
    patches: Patches,
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Write TUNED with all but the weights of the patches set back to BASE's: only those skills are kept.

    The patches say where; the values are TUNED's, which may be another tuning of the same base.
    """
    from keystep.edit.localize import patch_of
    from keystep.edit.localize.patch import union
    from keystep.files import free_for
    from keystep.nn.checkpoint import check_same_kind, load_model

    loaded = _loaded(patches)
    free_for(out)
    check_same_kind(base, tuned)
    model, other = load_model(base), load_model(tuned)
    own, its = (dict(each.named_parameters(remove_duplicate=False)) for each in (model, other))
    masks = union(loaded)
    for name, mask in masks.items():
        if name not in own or own[name].shape != mask.shape:
            raise BadInput(f"tensor {name} of the patch does not fit the base", field="PATCH", mend="give patches of this base")
    kept = patch_of(own, its, masks, name="+".join(patch.name for patch in loaded))
    kept.apply(model)
    _write(model, base, out, [kept], as_json, "kept")


def overlap(
    patches: Patches,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw where they are (.svg).")] = None,
    as_json: AsJson = False,
) -> None:
    """How much of each patch the others share: |i and j| / |j|, beside what chance would give (the density of i)."""
    from keystep.edit.localize import overlap as share

    if len(patches) < 2:
        raise BadInput("is one alone", field="PATCH", value=str(patches[0]), mend="give two patches or more")
    loaded = _loaded(patches)
    rows = [
        {"first": one.name, "second": two.name, "overlap": share(one, two), "by_chance": one.density, "parameters": two.size}
        for number, one in enumerate(loaded)
        for other, two in enumerate(loaded)
        if number != other
    ]
    if picture is not None:
        from keystep.measure.chart import save

        save(charts(loaded), picture)
    if as_json:
        typer.echo(json.dumps({"overlaps": rows, "histograms": {p.name: [row._asdict() for row in p.histogram()] for p in loaded}}))
        return
    for row in rows:
        chance = f"chance {row['by_chance']:.2%}"
        typer.echo(f"{row['first']} has {row['overlap']:.2%} of {row['second']}'s {row['parameters']:,} places; {chance}")


def _loaded(files: Sequence[Path]) -> list[Patch]:
    from keystep.edit.localize import Patch

    return [Patch.load(file) for file in files]


def _write(model: Any, source: Path, out: Path, patches: Sequence[Patch], as_json: bool, done: str) -> None:
    from keystep.nn.checkpoint import load_tokenizer, save_model

    tokenizer = load_tokenizer(source) if (source / "tokenizer_config.json").is_file() else None
    save_model(model, tokenizer, out)
    changed = {patch.name: patch.size for patch in patches}
    if as_json:
        typer.echo(json.dumps({"out": str(out), "patches": changed}))
        return
    typer.echo(f"wrote {out}; {done}: " + ", ".join(f"{name} ({size:,} parameters)" for name, size in changed.items()))


def charts(patches: Sequence[Patch]) -> list[Chart]:
    """The share of parameters that each patch changes, by layer and by kind."""
    from keystep.measure.chart import Chart, Line

    found = []
    for title, of in (("By layer", 0), ("By kind", 1)):
        names, lines = dict[str, int](), []
        for patch in patches:
            counts: dict[str, list[int]] = {}
            for row in patch.histogram():
                key = row.kind if of else ("outside" if row.layer is None else str(row.layer))
                both = counts.setdefault(key, [0, 0])
                both[0], both[1] = both[0] + row.chosen, both[1] + row.of
                names.setdefault(key, len(names))
            lines.append(Line(patch.name, [names[key] for key in counts], [a / b for a, b in counts.values()], style="bars"))
        found.append(Chart(title, ("layer", "kind of parameter")[of], "share changed", lines, names=list(names), share=False))
    return found
