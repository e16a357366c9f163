"""`keystep run --dry-run`: the first prompt and what the run would take, without a single call."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import typer

from keystep.cli.job import Job
from keystep.lm.base import LM, Prompt
from keystep.run import Procedure
from keystep.run.ask import Asking
from keystep.run.procedure import adapted

CHARACTERS_PER_TOKEN = 4  # a rough rule for English text


def dry(job: Job, procedure: Procedure, lm: LM, as_json: bool) -> None:
    """Print the wordings of the first prompt and an estimate: each model that is asked reads the prompt once, answers are as long as
    they may be. A price is known where a price table was given."""
    wording = procedure.prompt(procedure.start())
    prompts: list[Prompt] = wording if isinstance(wording, list) else [wording]
    steps, known = (procedure.total(), True) if procedure.total() is not None else (procedure.max_steps, False)
    votes = job.rule().wanted({})
    longest = adapted(Asking(lm, sampling=job.sampling()), procedure).sampling.max_tokens
    tokens_in = tokens_out = cost = None
    if steps is not None:
        characters = max(len(text) for text in map(_text, prompts))
        tokens_in = steps * min(votes, lm.members) * -(-characters // CHARACTERS_PER_TOKEN)
        tokens_out = steps * votes * longest
        rates = [getattr(model, "price", None) for model in getattr(lm, "models", [lm])]
        if job.prices and all(rates):
            each = [sum(side) / len(rates) for side in zip(*(rate for rate in rates if rate), strict=True)]
            cost = (tokens_in * each[0] + tokens_out * each[1]) / 1e6
    if as_json:
        shown = [text if isinstance(text, str) else [{"role": m.role, "content": m.content} for m in text] for text in prompts]
        estimate = {"steps": steps, "steps_known": known, "samples": None if steps is None else steps * votes}
        spent = {"tokens_in": tokens_in, "tokens_out_at_most": tokens_out, "cost_at_most": cost}
        typer.echo(json.dumps({"procedure": procedure.name, "model": lm.name, "prompts": shown, **estimate, **spent}))
        return
    for number, prompt in enumerate(prompts, 1):
        typer.echo(f"--- first prompt{f', wording {number}' if len(prompts) > 1 else ''}\n{_text(prompt)}")
    typer.echo("---")
    if steps is None:
        typer.echo(f"{procedure.name} on {lm.name}: nobody knows how many steps; at least {votes} samples each")
        return
    typer.echo(
        f"{procedure.name} on {lm.name}: {'' if known else 'at most '}{steps:,} steps, at least {votes} samples each: {steps * votes:,}"
    )
    typer.echo(f"about {tokens_in:,} tokens in, at most {tokens_out:,} out if no vote is split")
    typer.echo("price: not known (give --prices FILE)" if cost is None else f"price: at most {cost:.4f} if no vote is split")


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"[{asdict(message)['role']}] {message.content}" for message in prompt)
