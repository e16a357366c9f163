"""The page: facts in, one HTML text out, which asks nothing of any other place.

Everything that comes from a run is hostile: the template escapes all of it, no script reads it, and a Content-Security-Policy allows this
page's own style and script by their hashes and nothing else.
"""

from __future__ import annotations

import math
import time
from base64 import b64encode
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from keystep.run.foreseen import sure
from keystep.run.journal import Journal
from keystep.view.aggregate import Aggregate
from keystep.view.facts import details, facts, run_row

MOST_BYTES = 2_000_000
_HERE = Path(__file__).parent
_USUAL_JOURNAL = "sqlite:///runs.db"


def report(journal: Journal, run: str) -> str:
    """A run of the journal, finished or not, as one self-contained HTML page of at most 2 MB.

    Raises:
        BadInput: there is no such run.
    """
    known, aggregate = read(journal, run)
    return page(journal, known, aggregate)


def read(journal: Journal, run: str) -> tuple[dict[str, Any], Aggregate]:
    """What the page says of a run, and the aggregate it comes from.

    Raises:
        BadInput: there is no such run.
    """
    row, aggregate = run_row(journal, run), Aggregate(run)
    aggregate.read(journal)
    return facts(journal, row, aggregate), aggregate


def page(journal: Journal, known: Mapping[str, Any], aggregate: Aggregate) -> str:
    """The page with the details of every bin in it, those of the hardest steps first, as far as there is room."""
    main, title = render("run.html", **known), f"{known['name']} {known['run']}"
    empty = [panel(known, number, [], whole=not each.hard) for number, each in enumerate(aggregate.bins)]
    room = MOST_BYTES - len(_page(title, main, empty).encode())
    ranked = [sorted(each.hard, reverse=True) for each in aggregate.bins]
    # Of every bin the hardest before the second hardest of any.
    order = sorted(((rank, -hard[0], number) for number, some in enumerate(ranked) for rank, hard in enumerate(some)))
    filled: dict[int, list[dict[str, Any]]] = {}
    panels = list(empty)
    for start in range(0, len(order), 100):
        part = order[start : start + 100]
        for (_, _, number), step in zip(part, details(journal, aggregate, [ranked[n][rank] for rank, _, n in part]), strict=False):
            more = [*filled.get(number, []), step]
            longer = panel(known, number, more)
            grown = len(longer.encode()) - len(panels[number].encode())
            if grown <= room:
                room -= grown
                filled[number], panels[number] = more, longer
    return _page(title, main, panels)


def panel(known: Mapping[str, Any], number: int, hard_steps: list[dict[str, Any]], *, whole: bool = False) -> Markup:
    """What the page shows of one bin; `whole` is whether no step of it is left out."""
    where = ", all rows together" if known["rows"] else ", all places together" if known["places"] > 1 else ""
    macro: Any = _environment().get_template("parts.html").module
    return Markup(macro.bin_panel(known["bins"][number], hard_steps, whole, where))


def render(template: str, **values: Any) -> Markup:
    """The inside of a page."""
    return Markup(_environment().get_template(template).render(**values))  # autoescaped


def live(title: str, main: Markup, events: str) -> str:
    """A page that is served, with the address of its news."""
    return _shell(title, main, events=events)


def _page(title: str, main: Markup, panels: Iterable[Markup]) -> str:
    inert = Markup("\n").join(Markup('<template id="bin-{}">{}</template>').format(number, each) for number, each in enumerate(panels))
    return _shell(title, main, panels=inert, written=time.time())


def _shell(title: str, main: Markup, *, panels: Markup = Markup(""), written: float | None = None, events: str | None = None) -> str:
    style, script = (Markup((_HERE / name).read_text("utf-8")) for name in ("style.css", "page.js"))
    template = _environment().get_template("page.html")
    return template.render(
        title=title, main=main, panels=panels, written=written, events=events, style=style, script=script,
        policy=policy(bool(events)), version=version("keystep"),
    )  # fmt: skip


@cache
def policy(served: bool) -> str:
    """Content-Security-Policy: nothing from anywhere but this style and this script, and for a served page news from where it came."""
    hashes = [f"'sha256-{b64encode(sha256((_HERE / name).read_bytes()).digest()).decode()}'" for name in ("style.css", "page.js")]
    own = "; connect-src 'self'" if served else ""
    return f"default-src 'none'; style-src {hashes[0]}; script-src {hashes[1]}; img-src data:; base-uri 'none'; form-action 'none'{own}"


@cache
def _environment() -> Environment:
    made = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(
        whole=_whole, plain=_plain, votes="{:.2f}".format, short=_short, percent=_percent, chance=sure, money="{:,.4f}".format,
        seconds=_seconds, rate=_rate, date=_date, span=_span, nice_top=_nice_top, scale=_scale, figure=_figure,
        journal_flag=_journal_flag,
    )  # fmt: skip
    return made


def _whole(number: float) -> str:
    return f"{number:,.0f}"


def _plain(number: float) -> str:
    return f"{number:g}"


def _short(number: float) -> str:
    """Three figures of a large number."""
    if number < 100_000:
        return f"{number:,.0f}"
    power = min(4, int(math.log10(number)) // 3)
    return f"{number / 1000**power:.3g}\N{NO-BREAK SPACE}{' kMGT'[power]}"


def _percent(share: float) -> str:
    """Rounded down, so that 100 % is all of them."""
    return f"{math.floor(share * 1000) / 10:g}%"


def _seconds(seconds: float) -> str:
    if seconds < 1:
        text = f"{seconds * 1000:.2g} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    elif seconds < 60:
        text = f"{seconds:.1f} s"
    else:
        minutes, rest = divmod(int(seconds), 60)
        text = f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"


def _date(seconds: float) -> str:
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{at.day} {at:%b %Y, %H:%M} UTC"


def _span(bin: Mapping[str, Any]) -> str:
    return f"Step {bin['first']:,}" if bin["first"] == bin["last"] else f"Steps {bin['first']:,} to {bin['last']:,}"


def _nice_top(most: int) -> int:
    """The end of an axis: a round number, and so is its half."""
    power = 10.0 ** math.floor(math.log10(max(1, most)))
    return max(4, round(next(top * power for top in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if top * power >= most)))


def _scale(each: Mapping[str, Any]) -> dict[str, str]:
    """Where the band and the mark lie, in hundredths of the width."""
    least, most = min(each["low"], each["came"]), max(each["high"], each["came"])
    room = (most - least) / 3 or abs(most) or 1.0
    at = {name: 100 * (each[name] - least + room) / (most - least + 2 * room) for name in ("low", "high", "came")}
    return {"low": f"{at['low']:.2f}", "width": f"{max(0.5, at['high'] - at['low']):.2f}", "came": f"{at['came']:.2f}"}


def _figure(value: float, name: str) -> str:
    return f"{value:{ {'cost': ',.4f', 'seconds': ',.1f'}.get(name, ',.0f') }}"


def _journal_flag(url: str) -> str:
    return "" if url == _USUAL_JOURNAL else f" --journal {quote(url)}"
