"""Record every sample of a model in a file of JSON lines, and replay them exactly, offline.

The first line names the model. Every further line is one sample under the hash of its request (without `n` and `first`: a sample
is known by its request and its index); the first sample of a request also carries the request itself, to be read. Secrets are taken
out of what is written; a sample that contained one is replayed without it. Lines are flushed as they come (a killed process loses
nothing, a power failure may). What this does not cover: a model that was asked the same index twice is replayed with its last answer.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from keystep.errors import BadInput
from keystep.lm.base import LM, Request, Sample, ToolCall
from keystep.lm.redact import redact

FORMAT = 1
_NOT_HASHED = ("n", "first")


class Record(LM):
    """`lm`, and every sample it gives appended to `path` (the folder must exist).

    A recording of the same model is carried on, also where a kill cut its last line short.

    Raises:
        BadInput: the file cannot be written, is no recording, or is one of another model.
    """

    def __init__(self, lm: LM, path: str | Path) -> None:
        self.lm, self.path, self.name, self.members = lm, Path(path), lm.name, lm.members
        self._lock = threading.Lock()
        self._shown: set[str] = set()
        head = _text(redact({"keystep": "recording", "format": FORMAT, "name": lm.name, "members": lm.members, "identity": lm.identity()}))
        try:
            lines, end = _load(self.path) if self.path.exists() else ([], 0)
            if lines and _text(lines[0]) != head:
                mend = "give another file"
                raise BadInput("is a recording of another model", field=str(path), value=lines[0].get("identity"), mend=mend)
            if not lines and self.path.exists() and not head.encode().startswith(self.path.read_bytes()):
                raise BadInput("is no recording", field=str(path), mend="give another file")
            self._shown.update(line["ask"] for line in lines if "request" in line)
            self._file = self.path.open("a", encoding="utf-8", errors="surrogatepass")
            self._file.truncate(end)
            if not lines:
                self._write(head)
        except OSError as error:
            raise BadInput(f"cannot be written ({error.strerror})", field=str(path)) from None

    def identity(self) -> Any:
        return self.lm.identity()

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        ask = _hash(request)
        async with aclosing(self.lm.sample(request)) as samples:
            async for sample in samples:
                with self._lock:
                    shown = {} if ask in self._shown else {"request": redact(_readable(request))}
                    self._shown.add(ask)
                    self._write(_text({"ask": ask, **shown, "sample": redact(asdict(sample))}))
                yield sample

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors = await self.lm.embed(texts)
        with self._lock:
            for text, vector in zip(texts, vectors, strict=True):
                self._write(_text({"embed": _digest(text), "text": redact(text), "vector": vector}))
        return vectors

    async def close(self) -> None:
        self._file.close()
        await self.lm.close()

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()


class Replay(LM):
    """The samples of a recording, for the requests that were recorded, in the order in which they came; nothing is computed.

    The name, members and identity are those of the recorded model, so that its run can be resumed or repeated. The whole file is
    held in memory.

    Raises:
        BadInput: the file cannot be read or is no recording; later, when a request was not recorded.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            lines, _ = _load(self.path)
        except OSError as error:
            raise BadInput(f"cannot be read ({error.strerror})", field=str(path)) from None
        if not lines:
            raise BadInput("is no recording", field=str(path))
        self._samples: dict[str, dict[int, Sample]] = {}
        self._requests: dict[str, dict[str, Any]] = {}
        self._vectors: dict[str, list[float]] = {}
        for number, line in enumerate(lines, 1):
            try:
                self._take(line)
            except (KeyError, TypeError, AttributeError) as error:
                raise BadInput(f"line {number} is no line of a recording ({error})", field=str(path)) from None

    def _take(self, line: dict[str, Any]) -> None:
        if "keystep" in line:
            self.name, self.members, self._identity = line["name"], line["members"], line["identity"]
        elif "embed" in line:
            self._vectors[line["embed"]] = line["vector"]
        else:
            sample = Sample(**line["sample"] | {"tool_calls": tuple(ToolCall(**call) for call in line["sample"]["tool_calls"])})
            known = self._samples.setdefault(line["ask"], {})
            known.pop(sample.index, None)  # asked again: the last answer counts, and comes last
            known[sample.index] = sample
            if "request" in line:
                self._requests[line["ask"]] = line["request"]

    def identity(self) -> Any:
        return self._identity

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        wanted = range(request.first, request.first + request.n)
        known = self._samples.get(_hash(request), {})
        for index in [index for index in known if index in wanted]:
            yield replace(known[index])
        missing = [index for index in wanted if index not in known]
        if missing and known:
            problem = f"of this request samples {_ranges(known)} were recorded, not {_ranges(missing)}"
            raise BadInput(problem, field=str(self.path), mend="record it with as many samples")
        if missing:
            raise BadInput(self._nearest(request), field=str(self.path), mend="record it, or ask as it was recorded")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        for text in texts:
            if _digest(text) not in self._vectors:
                raise BadInput("the embedding of this text was not recorded", field=str(self.path), value=redact(text))
        return [list(self._vectors[_digest(text)]) for text in texts]

    def _nearest(self, request: Request) -> str:
        """Says what differs between a request and the recorded one most like it."""
        if not self._requests:
            return "this request was not recorded: the recording is empty"
        asked = json.loads(json.dumps(redact(_readable(request))))

        def unlike(recorded: dict[str, Any]) -> tuple[int, int]:
            apart = [field for field in asked if asked[field] != recorded.get(field)]
            return len(apart), -_common(str(asked["prompt"]), str(recorded.get("prompt")))

        near = min(self._requests.values(), key=unlike)
        apart = [f"{field} {_differ(asked[field], near.get(field))}" for field in asked if asked[field] != near.get(field)]
        return f"this request was not recorded; the nearest one differs in {', '.join(apart) or 'a part that was redacted'}"


def _text(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False)


def _readable(request: Request) -> dict[str, Any]:
    return {field: value for field, value in asdict(request).items() if field not in _NOT_HASHED}


def _hash(request: Request) -> str:
    return _digest(json.dumps(_readable(request), sort_keys=True))


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _common(one: str, other: str) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _differ(asked: Any, recorded: Any) -> str:
    if isinstance(asked, str) and isinstance(recorded, str):
        at = max(0, _common(asked, recorded) - 10)
        return f"(from character {at}: asked {asked[at : at + 40]!r}, recorded {recorded[at : at + 40]!r})"
    return f"(asked {str(asked)[:60]}, recorded {str(recorded)[:60]})"


def _ranges(indices: Iterable[int]) -> str:
    """`0-2, 5` for 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _load(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All whole lines of a recording and where they end: what a kill left of a last line is passed over."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(content[:end].splitlines(), 1):
        try:
            line = json.loads(text.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or (number == 1 and line.get("keystep") != "recording"):
            raise BadInput(f"line {number} is no line of a recording", field=str(path))
        lines.append(line)
    if lines and lines[0].get("format") != FORMAT:
        raise BadInput("a recording of another format", field=str(path), value=lines[0].get("format"), mend="use the keystep that made it")
    return lines, end
