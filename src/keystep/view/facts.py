"""What the page says of a run, as JSON: the run's own row, its aggregate, and the texts of the steps that are worth a look.

Everything here is bounded, however long the run and whatever stands in it: texts are cut, lists have an end and say what they leave out.
Secrets are redacted, before a cut could hide one in part. Nothing is escaped: that is the page's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from markupsafe import escape

from keystep.errors import BadInput
from keystep.lm.redact import redact
from keystep.plan import Plan
from keystep.run.builtin import BUILTIN, builtin
from keystep.run.foreseen import beside
from keystep.run.journal import Journal
from keystep.run.journal_reader import with_chunks
from keystep.run.tables import rows, runs, scopes, steps, undecided
from keystep.view.aggregate import Aggregate, Hard, Sums, samples_of, steps_of

CANDIDATES, VOTES = 5, 12  # of one step
ANSWER, TEXT, LINE, WHY = 240, 400, 300, 2000  # bytes, as they stand in the page
WAITING, FAILED, PLAN, PLACES, REASONS = 20, 100, 200, 12, 12  # rows of a list
SIZES = 12  # bars of the histogram
MAX_CRASHES = 3  # after which a row is set aside, where the run does not say


def run_row(journal: Journal, run: str) -> dict[str, Any]:
    """The run's row, JSON columns read; by a reader's connection, so from whichever thread.

    Raises:
        BadInput: there is no such run.
    """
    found = next(journal.select(sa.select(runs).where(runs.c.id == run)), None)
    if found is None:
        raise BadInput("the journal has no such run", field="run", value=run, mend="`keystep runs` lists them")
    row = dict(found._mapping)
    return row | {name: json.loads(row[name]) for name in ("spec", "identity", "result") if row[name] is not None}


def facts(journal: Journal, row: Mapping[str, Any], aggregate: Aggregate) -> dict[str, Any]:
    """All that the page shows of a run but for the details of single bins."""
    spec = row["spec"] if isinstance(row["spec"], dict) else {}
    result = row["result"] if isinstance(row["result"], dict) else {}
    total, identity, waiting = aggregate.total, row["identity"], _waiting(journal, row["id"])
    of_rows = _rows(journal, row["id"], spec, result) if "rows" in identity.get("work", {}) else None
    status = "interrupted" if row["status"] == "running" and not journal.is_held(row) else row["status"]
    counted = int(result.get("steps", total.steps))
    spent = {"samples": total.samples, "tokens_in": total.tokens_in, "tokens_out": total.tokens_out, "cost": total.cost}
    came = {**spent, "seconds": row["seconds"], "correct": result.get("correct")}
    outcome = {
        "run": row["id"], "name": row["name"], "status": status, "verdict": _verdict(status, result, waiting, of_rows),
        "why": row["why"] and clip(redact(row["why"]), WHY), "first_error_step": result.get("first_error_step"),
        "result": _result(row["result"]), "steps": counted, "expected": _expected(spec), "undecided": waiting, "rows": of_rows,
    }  # fmt: skip
    setting = {
        "model": _model(spec, identity.get("model")), "vote": _vote(str(identity.get("vote", ""))), "seed": identity.get("seed"),
        "journal": journal.url, "resumable": "procedure" in spec,
    }  # fmt: skip
    figures = {
        **spent, "calls": row["calls"], "flagged": total.flagged, "sampled": total.sampled, "disputed": total.disputed,
        "votes_per_step": total.mean, "most": total.most, "started": row["started"], "updated": row["updated"],
        "seconds": row["seconds"], "steps_per_second": counted / row["seconds"] if row["seconds"] else None,
        "forecast": [asdict(each) for each in beside(spec["forecast"], came)] if spec.get("forecast") else None,
    }  # fmt: skip
    parts = {
        "width": aggregate.width, "sizes": _sizes(aggregate), "places": len(aggregate.places),
        "flags": [{"reason": clip(reason, LINE), "count": count} for reason, count in aggregate.reasons.most_common(REASONS)],
        "flag_reasons": len(aggregate.reasons), "plans": _plans(journal, identity, aggregate),
        "busiest": [] if of_rows else _busiest(aggregate),
    }  # fmt: skip
    bins = [_bin(aggregate, number) for number in range(len(aggregate.bins))]
    hard_steps = details(journal, aggregate, aggregate.hardest())
    return redact({**outcome, **setting, **figures, **parts}) | {"bins": bins, "hard_steps": hard_steps}


def details(journal: Journal, aggregate: Aggregate, hard: Iterable[Hard]) -> list[dict[str, Any]]:
    """These steps in the order given, with their candidates and kept samples."""
    hard = list(hard)
    texts: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in redact([row._asdict() for row in samples_of(journal, hard, VOTES)]):
        texts.setdefault((row["scope"], row["seq"]), []).append(_sample(row["idx"], row))
    found = {(row["scope"], row["seq"]): row for row in redact([row._asdict() for row in steps_of(journal, hard)])}
    chosen = [found[-scope, -seq] for _, _, scope, seq in hard if (-scope, -seq) in found]  # the run may be deleted meanwhile
    return [
        {
            "id": f"{row['scope']}-{row['seq']}", "step": step_name(aggregate.places[row["scope"]].path, row["name"] or row["seq"]),
            "samples": row["samples"], "flagged": row["flagged"], "skill": row["skill"] and clip(row["skill"], LINE),
            **_candidates(json.loads(row["candidates"]) if row["candidates"] else {row["answer"]: row["samples"] - row["flagged"]}),
            "votes": texts.get((row["scope"], row["seq"]), []),
        }
        for row in chosen
    ]  # fmt: skip


def _sample(number: int, vote: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: vote[name] and clip(vote[name], limit) for name, limit in (("key", ANSWER), ("flag", LINE))}
    return {"number": number, "text": clip(vote["text"], TEXT), "model": clip(vote["model"], LINE), **shown}


def step_name(path: str, step: object) -> str:
    """A step as the command line names it: within the run's first work, the path is left out."""
    return clip(f"{path}/{step}".removeprefix("0/").lstrip("/"), LINE)


def clip(text: str, limit: int) -> str:
    """`text`, cut so that it takes at most `limit` bytes in a page."""
    text, whole = text.encode(errors="replace").decode()[:limit], text
    while (size := len(str(escape(text)).encode())) > limit:
        text = text[: len(text) * limit // size]
    return text if len(text) == len(whole) else text[:-3] + "…"


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _candidates(counts: Mapping[str, int]) -> dict[str, Any]:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown = [{"answer": clip(answer, ANSWER), "votes": votes} for answer, votes in ranked[:CANDIDATES]]
    return {"candidates": shown, "more_candidates": max(0, len(ranked) - CANDIDATES)}


def _verdict(status: str, result: Mapping[str, Any], waiting: list[dict[str, Any]], of_rows: dict[str, Any] | None) -> str:
    """One word: running, interrupted, undecided, stopped, rows (some of many failed), right, wrong, unchecked."""
    if status == "stopped":
        if any(each["decision"] is None for each in waiting) and not of_rows:
            return "undecided"
        return "rows" if of_rows and (of_rows["failed"] or of_rows["set_aside"]) else "stopped"
    return status if status != "finished" else {True: "right", False: "wrong", None: "unchecked"}[result.get("correct")]


def _model(spec: Mapping[str, Any], identity: Any) -> str:
    name = spec.get("model") or (identity.get("name") if isinstance(identity, dict) else None) or identity
    return clip(_said(name), LINE) if name else ""


def _vote(rule: str) -> str:
    """A rule of voting, as the run's identity has it, in words."""
    known = {"AheadBy": "first to lead by {}", "Majority": "the most votes of {}", "First": "the first valid answer, no vote"}
    found = re.match(r"(\w+)\(\w+=(\d+)", rule)
    return known[found[1]].format(found[2]) if found and found[1] in known else clip(rule, LINE)


def _result(result: Any) -> str | None:
    """What came out: of an `Outcome` its result, else what the run's method gave."""
    value = result["result"] if isinstance(result, dict) and "run_id" in result else result
    return None if value is None else clip(_said(redact(value)), TEXT)


def _expected(spec: Mapping[str, Any]) -> int | None:
    """The steps of the whole run, where they are known without reading files of the user's that may have changed since."""
    if isinstance(spec.get("procedure"), str) and spec["procedure"] in BUILTIN and not spec.get("inputs"):
        return builtin(spec["procedure"], spec.get("settings") or {}).total()
    return None


def _bin(aggregate: Aggregate, number: int) -> dict[str, Any]:
    each, first = aggregate.bins[number], number * aggregate.width
    figures = {name: getattr(each, name) for name in ("steps", "sampled", "samples", "most", "flagged", "disputed", "seconds", "cost")}
    tokens = {"tokens_in": each.tokens_in, "tokens_out": each.tokens_out}
    return {"first": first, "last": min(first + aggregate.width, aggregate.end) - 1, "mean": each.mean, **figures, **tokens}


def _sizes(aggregate: Aggregate) -> list[dict[str, Any]]:
    """How many steps took how many samples; where there are too many different numbers, the last bar is for all from there on."""
    ranked = sorted(aggregate.sizes.items())
    shown = [{"samples": str(samples), "steps": count} for samples, count in ranked[: SIZES if len(ranked) <= SIZES else SIZES - 1]]
    if len(ranked) > SIZES:
        rest = ranked[SIZES - 1 :]
        shown.append({"samples": f"{rest[0][0]}+", "steps": sum(count for _, count in rest)})
    return shown


def _waiting(journal: Journal, run: str) -> list[dict[str, Any]]:
    """Steps that no vote could decide: those that still wait for a person first."""
    query = sa.select(undecided).join(scopes, undecided.c.scope == scopes.c.id).where(scopes.c.run.in_(with_chunks(run)))
    query = query.order_by(undecided.c.decision.is_not(None), undecided.c.scope, undecided.c.seq).limit(WAITING)
    shown: list[dict[str, Any]] = []
    for found in journal.select(query):
        ledger = redact(json.loads(found.ledger))
        shown.append({
            "id": f"u{found.scope}-{found.seq}", "step": clip(found.step, LINE), "samples": ledger["samples"],
            "flagged": ledger["flagged"], "skill": None, **_candidates(ledger["candidates"]),
            "votes": [_sample(vote["index"], vote) for vote in ledger["votes"][:VOTES]],
            "decision": found.decision and clip(redact(found.decision), ANSWER),
        })  # fmt: skip
    return shown


def _rows(journal: Journal, run: str, spec: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run over many inputs: how many rows came out how, and those that did not come out well."""
    most = spec.get("max_crashes") or MAX_CRASHES
    c = rows.c
    query = sa.select(c.status, c.correct, c.crashes, sa.func.count().label("rows")).where(c.run.in_(with_chunks(run)))
    counts = {"finished": 0, "wrong": 0, "failed": 0, "set_aside": 0, "running": 0}
    for some in journal.select(query.group_by(c.status, c.correct, c.crashes)):
        name = some.status if some.status in ("finished", "failed") else "running"
        counts["set_aside" if name == "failed" and some.crashes >= most else name] += some.rows
        counts["wrong"] += some.rows if name == "finished" and some.correct == 0 else 0
    bad = sa.or_(c.status == "failed", c.correct == 0)
    query = sa.select(c.row, c.status, c.crashes, c.result).where(c.run.in_(with_chunks(run)), bad)
    shown: list[dict[str, Any]] = []
    for found in journal.select(query.order_by(c.row).limit(FAILED)):
        line = redact(json.loads(found.result))
        became = "wrong" if found.status != "failed" else "set aside" if found.crashes >= most else "failed"
        why = line["error"] or f"wrong at step {line['first_error_step']}"
        shown.append({"row": found.row, "became": became, "why": clip(why, LINE), "steps": line["steps"], "samples": line["samples"]})
    left_out = counts["failed"] + counts["set_aside"] + counts["wrong"] - len(shown)
    total = (result.get("rows") or {}).get("total") or sum(counts.values()) - counts["wrong"]
    return {**counts, "total": total, "bad": shown, "bad_left_out": left_out}


def _plans(journal: Journal, identity: Mapping[str, Any], aggregate: Aggregate) -> list[dict[str, Any]]:
    """The run's plans with their steps as listed: which skill did each, after which others had failed, and what it took."""
    places = {place.path: place for place in aggregate.places.values()}
    shown: list[dict[str, Any]] = []
    for path, work in identity.get("work", {}).items():
        if "plan" not in work:
            continue
        listed = Plan.model_validate(work["plan"]).steps
        below = _below(places.values(), path)
        done = _named(journal, places, [path])
        failed = _named(journal, places, [f"{path}/{step.id}" for step in listed[:PLAN]])
        tried: dict[str, list[dict[str, str]]] = {}
        for (where, _), row in sorted(failed.items()):
            if row.name == "failed":
                why = clip(_said(json.loads(row.answer)), LINE)
                tried.setdefault(where, []).append({"skill": clip(row.skill or "", LINE), "why": why})
        steps_shown = []
        for number, step in enumerate(listed[:PLAN]):
            row, took = done.get((path, number)), below.get(step.id, Sums())
            steps_shown.append({
                "step": clip(step.id, LINE), "wanted": clip(step.skill, LINE), "needs": [clip(id, LINE) for id in sorted(step.first())],
                "skill": row and clip(row.skill or "", LINE), "seconds": row and row.seconds, "samples": took.samples,
                "flagged": took.flagged, "failed": tried.get(f"{path}/{step.id}", [])[:VOTES],
                "answer": row and clip(redact(row.answer), ANSWER),
            })  # fmt: skip
        shown.append({"path": path, "steps": steps_shown, "left_out": max(0, len(listed) - PLAN)})
    return shown


def _below(places: Iterable[Any], path: str) -> dict[str, Sums]:
    """What was spent in the places below `path`, by the name of the one directly below."""
    found: dict[str, Sums] = {}
    for place in places:
        if place.path.startswith(f"{path}/"):
            found.setdefault(place.path.removeprefix(f"{path}/").partition("/")[0], Sums()).add(place)
    return found


def _named(journal: Journal, places: Mapping[str, Any], paths: list[str]) -> dict[tuple[str, int], Any]:
    """The steps of some places by (path, number)."""
    ids = {places[path].id: path for path in paths if path in places}
    c = steps.c
    query = sa.select(c.scope, c.seq, c.name, c.skill, c.answer, c.seconds).where(c.scope.in_(ids)).limit(10 * PLAN)
    return {(ids[row.scope], row.seq): row for row in journal.select(query)} if ids else {}


def _busiest(aggregate: Aggregate) -> list[dict[str, Any]]:
    """The places with most samples, where there is more than one."""
    asked = [place for place in aggregate.places.values() if place.samples]
    if len(asked) < 2:
        return []
    ranked = sorted(asked, key=lambda place: (-place.samples, place.id))[:PLACES]
    return [
        {"place": clip(place.path or "run", LINE), "steps": place.sampled, "samples": place.samples, "mean": place.mean,
         "most": place.most, "flagged": place.flagged, "seconds": place.seconds}
        for place in ranked
    ]  # fmt: skip
