"""The report, live: the runs of a journal and a page per run, served on this machine while runs go on.

A page gets news by server-sent events: the whole inside of the page again when something in it changed, once a second at most. The
journal is read, never written: a run's steps each once, whoever looks on (`Aggregate`), and only while somebody does.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
import uvicorn
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from keystep.errors import BadInput, KeystepError
from keystep.lm.listen import address, listen
from keystep.lm.redact import redact
from keystep.run.journal import Journal
from keystep.run.journal_reader import CHUNK
from keystep.run.tables import runs
from keystep.view.aggregate import Aggregate
from keystep.view.facts import details, facts, run_row
from keystep.view.page import live, panel, policy, render

SECONDS = 1.0  # between two looks at the journal
SILENCE = 15.0  # after so long a comment is sent, so that nobody between takes the connection for dead
LISTED = 200  # runs
HOSTS = ["127.0.0.1", "localhost", "::1", "[::1]"]  # by other names a page of another site could ask (DNS rebinding)
HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


def serve(journal: Journal, host: str = "127.0.0.1", port: int = 0, *, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve until interrupted; `ready` is told the address.

    Raises:
        BadInput: an address that other machines reach, or a port that is taken.
    """
    with listen(host, port, risk="anyone who reaches this address can read the runs") as listening, suppress(KeyboardInterrupt):
        config = uvicorn.Config(app(journal, lambda: server.should_exit, host), log_level="warning", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        ready(address(host, listening))
        server.run(sockets=[listening])


def app(journal: Journal, ending: Callable[[], bool] = lambda: False, host: str = "127.0.0.1") -> Starlette:
    """The ASGI application; streams end when `ending` says so."""
    watched: dict[str, Watched] = {}

    def watch(http: Request) -> Watched:
        id = http.path_params["run"]
        if id not in watched:
            run_row(journal, id)
            watched[id] = Watched(journal, id)
        return watched[id]

    listed = Listed(journal)

    async def list_page(http: Request) -> Response:
        return _page("runs", await listed.look(), "/events")

    async def list_events(http: Request) -> Response:
        return _stream(listed.look, ending)

    async def run_page(http: Request) -> Response:
        watching = await run_in_threadpool(watch, http)
        return _page(watching.run, await watching.look(), f"/runs/{quote(watching.run, safe='')}/events")

    async def run_events(http: Request) -> Response:
        return _stream((await run_in_threadpool(watch, http)).look, ending)

    async def bin_part(http: Request) -> Response:
        watching = await run_in_threadpool(watch, http)
        return HTMLResponse(await watching.bin(http.path_params["first"]), headers=HEADERS)

    routes = [
        Route("/", list_page),
        Route("/events", list_events),
        Route("/runs/{run:path}/events", run_events),
        Route("/runs/{run:path}/bins/{first:int}", bin_part),
        Route("/runs/{run:path}", run_page),
    ]
    only_here = Middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS, host], www_redirect=False)
    return Starlette(routes=routes, middleware=[only_here], exception_handlers={KeystepError: _failed})


class Watched:
    """A run that somebody looks at; its steps are read once for all of them."""

    def __init__(self, journal: Journal, run: str) -> None:
        self.journal, self.run = journal, run
        self._lock = asyncio.Lock()
        self._aggregate = Aggregate(run)
        self._row: dict[str, Any] = {}
        self._held = False
        self._known: dict[str, Any] = {}
        self._main, self._at = Markup(""), 0.0

    async def look(self) -> Markup:
        """The inside of the page, at most a moment old.

        Raises:
            BadInput: the run was deleted.
        """
        async with self._lock:
            if not self._main or time.monotonic() - self._at >= SECONDS / 2:
                await run_in_threadpool(self._read)
                self._at = time.monotonic()
            return self._main

    async def bin(self, first: int) -> Markup:
        """What the page shows of the bin in which the step of this number is."""
        await self.look()
        async with self._lock:
            return await run_in_threadpool(self._bin, first)

    def _read(self) -> None:
        row = run_row(self.journal, self.run)
        if self._row and row["started"] != self._row["started"]:  # another run of the same name
            self._aggregate, self._row = Aggregate(self.run), {}
        held = self.journal.is_held(row)
        moved = (row["status"], row["owner"], held) != (self._row.get("status"), self._row.get("owner"), self._held)
        fresh = self._aggregate.read(self.journal, everywhere=moved)
        if fresh or moved or row != self._row or row["status"] == "stopped":  # then a person may have settled a step
            self._known = facts(self.journal, row, self._aggregate)
            self._main = render("run.html", **self._known)
        self._row, self._held = row, held

    def _bin(self, first: int) -> Markup:
        number = min(first // self._aggregate.width, len(self._aggregate.bins) - 1)
        if number < 0:
            raise BadInput("has no steps yet", field="run", value=self.run)
        hard = sorted(self._aggregate.bins[number].hard, reverse=True)
        return panel(self._known, number, details(self.journal, self._aggregate, hard), whole=not hard)


class Listed:
    """The runs of the journal, newest first; those on a cluster without their chunks."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._lock = asyncio.Lock()
        self._results: dict[tuple[str, float], dict[str, Any]] = {}  # of ended runs, which do not change any more
        self._main, self._at = Markup(""), 0.0

    async def look(self) -> Markup:
        async with self._lock:
            if not self._main or time.monotonic() - self._at >= SECONDS / 2:
                self._main, self._at = await run_in_threadpool(self._read), time.monotonic()
            return self._main

    def _read(self) -> Markup:
        c, select = runs.c, self.journal.select
        query = sa.select(c.id, c.name, c.status, c.started, c.updated, c.seconds, c.calls, c.steps, c.owner, c.lease)
        found = list(select(query.where(~CHUNK).order_by(c.started.desc(), c.id).limit(LISTED)))
        new = [row.id for row in found if row.status == "finished" and (row.id, row.updated) not in self._results]
        results = (
            {row.id: json.loads(row.result or "null") for row in select(sa.select(c.id, c.result).where(c.id.in_(new)))} if new else {}
        )
        self._results = {
            (row.id, row.updated): _came(results[row.id]) if row.id in results else self._results[row.id, row.updated]
            for row in found if row.status == "finished" and (row.id in results or (row.id, row.updated) in self._results)
        }  # fmt: skip
        shown = [self._shown(row) for row in found]
        total = next(select(sa.select(sa.func.count().label("runs")).where(~CHUNK))).runs
        running = sum(each["verdict"] == "running" for each in shown)
        known = {"runs": shown, "total": total, "running": running, "journal": self.journal.url}
        return render("runs.html", **redact(known))

    def _shown(self, row: Any) -> dict[str, Any]:
        came = self._results.get((row.id, row.updated), {"steps": row.steps or None, "verdict": row.status})
        if row.status == "running" and not self.journal.is_held(row._mapping):
            came = {**came, "verdict": "interrupted"}
        about = {"run": row.id, "name": row.name, "link": f"/runs/{quote(row.id, safe='')}", "calls": row.calls}
        return {**about, "seconds": row.seconds, "started": row.started, **came}


def _came(result: Any) -> dict[str, Any]:
    found = result if isinstance(result, dict) else {}
    verdicts: dict[Any, str] = {True: "right", False: "wrong"}
    return {"steps": found.get("steps"), "verdict": verdicts.get(found.get("correct"), "unchecked")}


def _page(title: str, main: Markup, events: str) -> Response:
    headers = HEADERS | {"content-security-policy": f"{policy(True)}; frame-ancestors 'none'"}
    return HTMLResponse(live(title, main, events), headers=headers)


def _stream(look: Callable[[], Awaitable[Markup]], ending: Callable[[], bool]) -> Response:
    return StreamingResponse(_events(look, ending), media_type="text/event-stream", headers=HEADERS)


async def _events(look: Callable[[], Awaitable[Markup]], ending: Callable[[], bool]) -> AsyncIterator[str]:
    """The inside of the page whenever it changed, until the viewer leaves, the server ends or the run is deleted."""
    sent, at = Markup(""), time.monotonic()
    while not ending():
        try:
            main = await look()
        except BadInput:
            yield "event: gone\ndata: {}\n\n"
            return
        except KeystepError as error:  # the database is away for a moment
            yield f": {json.dumps(str(error))}\n\n"
            main = sent
        if main != sent:
            sent, at = main, time.monotonic()
            yield f"event: page\ndata: {json.dumps(main)}\n\n"
        elif time.monotonic() - at > SILENCE:
            at = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(SECONDS)


async def _failed(http: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 404 if isinstance(error, BadInput) else 503, headers=HEADERS)
