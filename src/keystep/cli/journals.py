"""`keystep runs`, `show` and `decide`: what a journal holds, and a person's word where votes could not decide."""

from __future__ import annotations

import json
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep.cli.defaults import JOURNAL, whole
from keystep.errors import BadInput

if TYPE_CHECKING:
    from keystep.run.journal import Journal
    from keystep.run.journal_reader import Row

JournalUrl = Annotated[str, typer.Option("--journal", metavar="URL", help="Where the runs are kept: a path or a database URL.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name; `keystep runs` lists them.")]


def runs(
    journal: JournalUrl = JOURNAL,
    chunks: Annotated[bool, typer.Option("--chunks", help="Also the chunks of runs on a cluster.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs of a journal, newest first."""
    from keystep.cli.job import open_journal

    store = open_journal(journal)
    try:
        found = [_about(row, store) for row in store.all_runs() if chunks or not _is_chunk(row)]
    finally:
        store.close()
    if as_json:
        typer.echo(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column("run", no_wrap=True), "procedure", "status", "steps", "seconds", "result", box=None, padding=(0, 2, 0, 0))
    for row in found:
        cells = (row["run_id"], row["procedure"], row["status"], f"{row['steps']:,}", f"{row['seconds']:.1f}", _result(row))
        table.add_row(*map(Text, cells))
    Console().print(table if found else "no runs yet")


def show(
    run: RunName,
    hard: Annotated[int, typer.Option(parser=whole, metavar="N", help="How many of the hardest steps to show.")] = 5,
    journal: JournalUrl = JOURNAL,
    as_json: AsJson = False,
) -> None:
    """Show a run: its outcome, what it took, its hardest steps, and the steps that wait for a decision."""
    from keystep.cli.job import open_journal

    if hard < 0:
        raise BadInput("is 0 or more", field="--hard", value=hard, mend="for instance 5")
    store = open_journal(journal)
    try:
        row = store.run(run)
        about = _about(row, store)
        hardest = [_step(path, step) for path, step in store.trace(run, limit=hard) if step.candidates or step.flagged]
        waiting = [
            {"step": each["step"], "ledger": each["ledger"], "decision": each["decision"] and json.loads(each["decision"])}
            for each in store.undecided(run)
        ]
    finally:
        store.close()
    if as_json:
        work = {"identity": row["identity"], "spec": row["spec"], "result": row["result"]}
        typer.echo(json.dumps({**about, **work, "hardest": hardest, "undecided": waiting}))
        return
    _print(about, hardest, waiting, hard)
    if isinstance(row["spec"], dict) and row["spec"].get("forecast") and about["status"] == "finished":
        from rich.console import Console

        from keystep.cli.forecast import beside

        Console().print(beside(row["spec"]["forecast"], about))


def decide(
    run: RunName,
    step: Annotated[str, typer.Argument(metavar="STEP", help="The undecided step, as `keystep show RUN` names it.")],
    answer: Annotated[str, typer.Argument(metavar="ANSWER", help="The answer as JSON, as the candidates are; other text counts as text.")],
    journal: JournalUrl = JOURNAL,
) -> None:
    """Settle a step that no vote could decide; then `keystep resume`."""
    from keystep.cli.job import open_journal, resume_command

    store = open_journal(journal)
    try:
        spec = store.run(run)["spec"]
        candidates: dict[str, int] = next((each["ledger"]["candidates"] for each in store.undecided(run) if each["step"] == step), {})
        store.decide(run, step, _answer(answer, [json.loads(name) for name in candidates]))
    finally:
        store.close()
    spec = spec if isinstance(spec, dict) else {}
    resumable = spec.get("chunk_of") or ("procedure" in spec and run)
    again = f"Go on with: {resume_command(resumable, journal)}" if resumable else "Go on with the program that began the run"
    typer.echo(f"step {step} is settled. {again}")


def _answer(text: str, candidates: list[Any]) -> Any:
    """A person's answer. Where there are candidates it has to be of their kind: the procedure has to be able to use it.

    Raises:
        BadInput: it is not.
    """
    kinds = {type(candidate) for candidate in candidates}
    if kinds == {str}:
        return text

    def refuse(word: str) -> Any:
        raise ValueError(word)

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        value = text
    if kinds and type(value) not in kinds:
        mend = f"write it as JSON, like {json.dumps(candidates[0], ensure_ascii=False)}"
        raise BadInput("is of another kind than the candidates", field="ANSWER", value=text, mend=mend)
    return value


def _about(row: dict[str, Any], store: Journal) -> dict[str, Any]:
    spread = "chunk" in row["identity"].get("work", {}).get("rows", {})
    spent = store.totals(row["id"], *(store.chunks(row["id"]) if spread else ()))
    steps = int(spent["steps"])
    status = "interrupted" if row["status"] == "running" and not store.is_held(row) else row["status"]
    result = row["result"] if isinstance(row["result"], dict) else {}
    return {
        "run_id": row["id"], "procedure": row["name"], "status": status, "why": row["why"], "started": row["started"],
        "updated": row["updated"], "seconds": round(row["seconds"], 3), "steps": steps, "correct": result.get("correct"),
        "first_error_step": result.get("first_error_step"), "samples": int(spent["samples"]), "flagged": int(spent["flagged"]),
        "votes_per_step": round(spent["samples"] / steps, 4) if steps else 0.0, "tokens_in": int(spent["tokens_in"]),
        "tokens_out": int(spent["tokens_out"]), "cost": spent["cost"],
    }  # fmt: skip


def _is_chunk(row: dict[str, Any]) -> bool:
    return isinstance(row["spec"], dict) and "chunk_of" in row["spec"]


def _result(about: dict[str, Any]) -> str:
    if about["status"] != "finished":
        return shorten(about["why"] or "", 100, placeholder=" …")
    return {True: "correct", None: "not checked", False: f"wrong at step {about['first_error_step']}"}[about["correct"]]


def _step(path: str, row: Row) -> dict[str, Any]:
    return {
        "step": f"{path}/{row.name or row.seq}".removeprefix("0/"), "answer": row.answer, "samples": row.samples, "flagged": row.flagged,
        "candidates": row.candidates,
    }  # fmt: skip


def _print(about: dict[str, Any], hardest: list[dict[str, Any]], waiting: list[dict[str, Any]], asked_for: int) -> None:
    """`asked_for`: how many hard steps were wanted."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(f"{about['run_id']}: {about['procedure']}, {about['status']}", style="bold"))
    if _result(about):
        console.print(Text(_result(about)))
    console.print(Text(f"{about['steps']:,} steps, {about['votes_per_step']:.2f} votes per step, {about['seconds']:.1f} seconds"))
    console.print(
        Text(f"{about['samples']:,} samples, {about['flagged']:,} flagged, {about['tokens_in']:,} tokens in, {about['tokens_out']:,} out")
    )
    if hardest:
        table = Table("hardest steps", "samples", "flagged", "candidates (votes)", box=None, padding=(0, 2, 0, 0))
        for each in hardest:
            votes = each["candidates"] or {json.dumps(each["answer"], ensure_ascii=False): each["samples"] - each["flagged"]}
            table.add_row(*map(Text, (each["step"], str(each["samples"]), str(each["flagged"]), _votes(votes))))
        console.print(table)
    elif about["steps"] and asked_for:
        console.print(Text("no step was disputed"))
    for each in waiting:
        ledger = each["ledger"]
        console.print(
            Text(f"step {each['step']} is undecided after {ledger['samples']} samples, {ledger['flagged']} of them flagged", style="bold")
        )
        if ledger["candidates"]:
            console.print(Text(_votes(ledger["candidates"])))
        for vote in ledger["votes"][: 0 if ledger["candidates"] else 3]:
            console.print(Text(f"{vote['flag']}: {vote['text'][:200]!r}"))
        if each["decision"] is not None:
            console.print(Text(f"decided by a person: {json.dumps(each['decision'], ensure_ascii=False)}"))


def _votes(votes: dict[str, int]) -> str:
    ranked = sorted(votes.items(), key=lambda item: -item[1])
    return "\n".join(f"{count:4} {name[:160]}" for name, count in ranked[:6]) + ("\n     …" if len(ranked) > 6 else "")
