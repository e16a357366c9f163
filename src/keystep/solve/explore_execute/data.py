"""What chains are learned from: rows of a file, and rows as tokens.

A row is {"question", "plan", "execution"} (sft), {"question", "plan"} (ef-sft) or {"question", "answer"} (rl; the answer may stand behind
a worked solution, as in GSM8K). The results file of `keystep solve explore-execute --set way=causal` is read too: of it, the pairs whose
answer was right, or could not be judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keystep.errors import BadInput
from keystep.nn.tuning import prompt_tokens
from keystep.run.many import input_rows
from keystep.solve.answers import behind
from keystep.solve.explore_execute.adherence import adherence
from keystep.solve.explore_execute.format import EXECUTION, EXECUTION_END, PLAN, PLAN_END, TAGS, chain

WANTED = {"sft": ("plan", "execution"), "ef-sft": ("plan",), "rl": ("answer",)}
_FORM = {stage: '{"question": "…", ' + ", ".join(f'"{name}": "…"' for name in names) + "}" for stage, names in WANTED.items()}


@dataclass(frozen=True, slots=True)
class Row:
    question: str
    plan: str = ""
    execution: str = ""
    answer: str = ""


def load(path: Path, stage: str, least_adherence: float = 0.0) -> list[Row]:
    """The rows of a file for a stage; pairs whose execution adheres less are left out.

    Raises:
        BadInput: the file cannot be read, a row lacks what the stage reads, holds a tag, or none is left.
    """
    found = []
    for number, given in enumerate(input_rows(path, frozenset({"question", "plan", "execution", "answer"}))):
        row = _of_results(given) if {"result", "ok"} <= given.keys() else given
        if row is None:
            continue
        read = {name: _text(row, name, f"row {number}", stage) for name in ("question", *WANTED[stage])}
        if stage != "sft" or adherence(read["plan"], read["execution"]) >= least_adherence:
            found.append(Row(**{**read, "answer": behind(read.get("answer", ""))}))
    if not found:
        raise BadInput("there are no rows to train on", field="--data", value=str(path), mend=f"write {_FORM[stage]} on every line")
    return found


def _of_results(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The pair in a line of a results file; None where it is to be left out."""
    result = row["result"] if isinstance(row["result"], dict) else {}
    details = result.get("details")
    if not row["ok"] or row.get("correct") is False or not isinstance(details, dict) or details.get("kept") is False:
        return None
    return {**details, "answer": result.get("answer")}


def _text(row: Mapping[str, Any], name: str, where: str, stage: str) -> str:
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"is no {name}", field=f"{where}, {name}", value=value, mend=f"for {stage} write {_FORM[stage]} on every line")
    if name in ("plan", "execution") and (tag := next((tag for tag in TAGS if tag in value), None)):
        raise BadInput(f"holds the tag {tag}", field=f"{where}, {name}", value=value, mend="give what stands between the tags")
    return value.strip()


@dataclass(frozen=True, slots=True)
class Tags:
    """The tokens of the four tags, and the end token."""

    plan: int
    plan_end: int
    execution: int
    execution_end: int
    end: int


def tags_of(tokenizer: Any) -> Tags | None:
    """The tags of a tokenizer that knows them as one token each; None where it does not.

    Looked up, never assumed: the released code has numbers of one model written in, and another model's plan is then never told from its
    execution.
    """
    known = tokenizer.get_vocab()
    if not all(tag in known and tokenizer(f"a{tag}b", add_special_tokens=False)["input_ids"].count(known[tag]) == 1 for tag in TAGS):
        return None
    return Tags(known[PLAN], known[PLAN_END], known[EXECUTION], known[EXECUTION_END], tokenizer.eos_token_id)


def add_tags(model: Any, tokenizer: Any) -> Tags:
    """The tags, added to tokenizer and embeddings where they are missing.

    Raises:
        BadInput: the tokenizer does not take them.
    """
    from transformers import AddedToken

    if tags_of(tokenizer) is None:
        tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
    tags = tags_of(tokenizer)
    if tags is None:
        raise BadInput("its tokenizer does not keep the tags whole", field="MODEL", value=TAGS, mend="use a fast tokenizer")
    return tags


def example(tokenizer: Any, tags: Tags, prompt: str, row: Row, stage: str) -> dict[str, list[int]]:
    """A row as `input_ids` and `labels`. Prompt and first tag do not count; of ef-sft, plan and closing tag alone are there."""
    start = prompt_tokens(tokenizer, prompt, PLAN)
    whole = prompt_tokens(tokenizer, prompt, f"{PLAN}{row.plan}{PLAN_END}" if stage == "ef-sft" else chain(row.plan, row.execution))
    if stage != "ef-sft":
        whole.append(tags.end)
    if whole[: len(start)] != start:
        raise BadInput("its tokenizer does not keep the tags whole", field="MODEL", value=TAGS, mend="use a fast tokenizer")
    return {"input_ids": whole, "labels": [-100] * len(start) + whole[len(start) :]}


def split(tokens: Sequence[int], tags: Tags) -> int | None:
    """Where the execution of a response begins: at the plan's closing tag, else at the execution's opening one; None without either."""
    for tag in (tags.plan_end, tags.execution):
        if tag in tokens:
            return list(tokens).index(tag)
    return None
