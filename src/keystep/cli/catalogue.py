"""`keystep models` and `keystep methods`: what there is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class Method:
    """A published method that has moved in. `name` is that of its reproduction, `use` what to type or import."""

    name: str
    room: str
    paper: str
    use: str


METHODS = (
    Method("maker", "run", "Meyerson et al. 2025, Solving a Million-Step LLM Task with Zero Errors, arXiv 2511.09030", "keystep run"),
    Method(
        "long-horizon-execution", "measure", "Sinha et al. 2025, The Illusion of Diminishing Returns, arXiv 2509.09677",
        "keystep bench long-horizon-execution",
    ),
    Method(
        "taskbench", "measure", "Shen et al. 2023, TaskBench: Benchmarking Large Language Models for Task Automation, arXiv 2311.18760",
        "keystep bench taskbench",
    ),
    Method(
        "llm-based-algorithms", "measure", "Chen et al. 2024, On the Design and Analysis of LLM-Based Algorithms, arXiv 2407.14788",
        "keystep decompose",
    ),
    Method("explore-execute", "solve", "Yang et al. 2025, Explore-Execute Chain, arXiv 2509.23946", "keystep solve explore-execute"),
    Method("procbench", "measure", "Fujisawa et al. 2024, ProcBench, arXiv 2410.03117", "keystep bench procbench"),
    Method("plan-and-solve", "solve", "Wang et al. 2023, Plan-and-Solve Prompting, arXiv 2305.04091", "keystep solve plan-and-solve"),
    Method(
        "auto-cot", "solve", "Zhang et al. 2022, Automatic Chain of Thought Prompting in Large Language Models, arXiv 2210.03493",
        "keystep demos, keystep solve auto-cot",
    ),
    Method(
        "decomposed-prompting", "solve", "Khot et al. 2023, Decomposed Prompting, arXiv 2210.02406", "keystep solve decomposed-prompting"
    ),
    Method(
        "daslam", "solve", "Juneja et al. 2023, Small Language Models Fine-tuned to Coordinate Larger Language Models, arXiv 2310.18338",
        "keystep solve daslam, keystep train daslam",
    ),
    Method(
        "skill-localization", "edit",
        "Panigrahi et al. 2023, Task-Specific Skill Localization in Fine-tuned Language Models, arXiv 2302.06600", "keystep edit locate",
    ),
    Method(
        "skill-unlearning", "edit", "Li et al. 2025, Effective Skill Unlearning through Intervention and Abstention, arXiv 2503.21730",
        "keystep edit forget",
    ),
    Method("corda", "edit", "Yang et al. 2024, CorDA: Context-Oriented Decomposition Adaptation, arXiv 2406.05223", "keystep edit adapt"),
)  # fmt: skip

OTHER_MODELS = {
    "http://HOST/v1#MODEL": "a model behind any OpenAI-compatible server; its key, if it wants one, in OPENAI_API_KEY or --api-key-env",
    "http://HOST/v1/completions#MODEL": "the same, asked by the completions interface: the prompt as it is, without roles",
    "openai:MODEL": "a model at OPENAI_BASE_URL, --base-url or OpenAI",
    "hf:FOLDER_OR_NAME": "a Hugging Face causal language model on this machine (pip install 'keystep[local]')",
    "replay:FILE": "a recording of `keystep run --record FILE`",
    "NAME,NAME,…": "several of these in turn",
}


def models(as_json: AsJson = False) -> None:
    """List the models that `--model` takes."""
    from keystep.lm.embedded.model import MODELS, WEIGHTS, load

    found: list[dict[str, Any]] = []
    for name, skills in MODELS.items():
        there = [load(skill) for skill in skills if (WEIGHTS / f"{skill}.safetensors").exists()]
        knows = [each.skill.tokenizer.KNOWS for each in there]
        sizes = [size for each in there for size in each.parameters]
        found.append({
            "name": name, "installed": bool(there), "members": len(there[0].members) if there else 0,
            "parameters": [min(sizes), max(sizes)] if sizes else [], "knows": knows,
        })  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found + [{"name": name, "what": what} for name, what in OTHER_MODELS.items()]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("model", "what it is", box=None, padding=(0, 3, 0, 0))
    for each in found:
        about = "not in this installation"
        if each["installed"]:
            small, large = each["parameters"]
            about = (
                f"{each['members']} transformers of {small:,} to {large:,} parameters, inside the package; {each['name']}:0 is the first "
            )
            about += f"alone. They know: {'; '.join(each['knows'])}"
        table.add_row(Text(each["name"]), Text(about))
    for name, what in OTHER_MODELS.items():
        table.add_row(Text(name), Text(what))
    Console().print(table)


def methods(as_json: AsJson = False) -> None:
    """List the published methods that are built in, and whether `keystep reproduce` knows them."""
    from keystep.cli.helpers import reproductions

    known = reproductions()
    rows = [{**asdict(method), "status": "built, with a reproduction" if method.name in known else "built"} for method in METHODS]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column("method", no_wrap=True), "room", "paper", "use", "status", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(row[column]) for column in ("name", "room", "paper", "use", "status")))
    Console().print(table)
