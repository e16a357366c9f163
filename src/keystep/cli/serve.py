"""`keystep serve`: models behind the OpenAI interface, every answer voted on; `serve-model`: the models themselves."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Annotated, Any

import typer

from keystep.cli.defaults import AHEAD_BY, MODEL, whole
from keystep.cli.defaults import number_option as _number
from keystep.cli.defaults import whole_option as _whole
from keystep.cli.telemetry import Otel, OtelContent, sent

PORT, MODEL_PORT = 8378, 8377
MOST_VOTES = 10

Models = Annotated[list[str] | None, typer.Option("--model", help=f"A model to serve, again for each further one (default: {MODEL}).")]
Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(parser=whole, metavar="N", help="The port to listen on.")]
AllowRemote = Annotated[bool, typer.Option("--allow-remote", help="Take an address that other machines reach. There is no password.")]


def serve(
    model: Models = None,
    host: Host = "127.0.0.1",
    port: Port = PORT,
    allow_remote: AllowRemote = False,
    base_url: Annotated[str | None, typer.Option(help="The server of an openai:MODEL.", rich_help_panel="Model")] = None,
    api_key_env: Annotated[str | None, typer.Option(metavar="VARIABLE", help="Where its key is.", rich_help_panel="Model")] = None,
    prices: Annotated[str | None, typer.Option(metavar="FILE", help="A JSON table of prices per model.", rich_help_panel="Model")] = None,
    ahead_by: Annotated[int | None, _whole(f"First to lead by K votes (default: {AHEAD_BY}).", "Vote")] = None,
    majority: Annotated[int | None, _whole("The most votes of N.", "Vote")] = None,
    first: Annotated[bool, typer.Option("--first", help="The first valid answer; no vote.", rich_help_panel="Vote")] = False,
    cap: Annotated[int | None, _whole("Most samples of one answer (default: 100).", "Vote")] = None,
    key: Annotated[str, typer.Option(metavar="KEY", help="It goes by: text, json or regex:PATTERN.", rich_help_panel="Vote")] = "text",
    most_votes: Annotated[int, _whole("The largest K or N that a request may ask for.", "Vote")] = MOST_VOTES,
    temperature: Annotated[float | None, _number("Where a request names none (default: 1).", "Sampling")] = None,
    max_tokens: Annotated[int | None, _whole("Where a request names none (default: 512).", "Sampling")] = None,
    too_long: Annotated[int | None, _whole("Throw answers of more tokens away.", "Sampling")] = None,
    journal: Annotated[str | None, typer.Option(metavar="URL", help="Keep every request as a run here (default: nothing is kept).")] = None,
    budget_calls: Annotated[int | None, _whole("Most samples of one request.", "Budget")] = None,
    budget_tokens: Annotated[int | None, _whole("Most tokens of one request.", "Budget")] = None,
    budget_cost: Annotated[float | None, _number("Most money of one request.", "Budget")] = None,
    budget_seconds: Annotated[float | None, _number("Most seconds of one request.", "Budget")] = None,
    otel: Otel = False,
    otel_content: OtelContent = False,
) -> None:  # fmt: skip
    """Serve models behind the OpenAI interface, with every answer decided by vote."""
    given = dict(locals())
    from keystep.cli.job import Job, absolute, open_journal
    from keystep.errors import BadInput
    from keystep.lm.base import Request
    from keystep.lm.server import serve_application
    from keystep.run import TooLong
    from keystep.run.proxy import app
    from keystep.run.voted import Voted, VoteKey

    flags = {name: value for name, value in given.items() if name in Job.model_fields} | {"prices": absolute(prices), "procedure": "serve"}
    jobs = [Job.of({**flags, "model": name}) for name in model or [MODEL]]
    for each in jobs:
        each.check_priced()
    job, models = jobs[0], [each.build_lm() for each in jobs]
    if len({lm.name for lm in models}) < len(models):
        raise BadInput("have the same name", field="--model", value=[lm.name for lm in models], mend="serve one of them at another port")
    if most_votes < 1:
        raise BadInput("is at least 1", field="--most-votes", value=most_votes)
    if journal is not None:
        open_journal(journal, must_exist=False).close()
    sampling = job.sampling()
    default = Request("", temperature=sampling.temperature, max_tokens=sampling.max_tokens)
    with sent(otel, otel_content) as tracing:
        shared: dict[str, Any] = {
            "vote": job.rule(), "key": VoteKey.read(key), "flags": [TooLong(too_long)] if too_long else [], "budget": job.budget(),
            "journal": journal, "tracing": tracing,
        }  # fmt: skip
        voted = {lm.name: Voted(lm, **shared) for lm in models}
        if otel:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # then, too, what has been made is sent off
        proxy = app(voted, default=default, most_votes=most_votes)
        serve_application(proxy, host, port, allow_remote=allow_remote, ready=_saying(f"voted answers of {', '.join(voted)}"))


def serve_model(model: Models = None, host: Host = "127.0.0.1", port: Port = MODEL_PORT) -> None:
    """Serve models behind the OpenAI interface, on this machine only; `serve` votes on their answers."""
    from keystep.lm import lm
    from keystep.lm.server import serve

    lms = {name: lm(name) for name in model or [MODEL]}
    serve(lms, host, port, ready=_saying(", ".join(lms)))


def _saying(what: str) -> Callable[[str], None]:
    return lambda address: typer.echo(f"serving {what} at {address}/v1 (stop with Ctrl-C)", err=True)
