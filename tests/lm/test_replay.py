"""Recordings: replayed exactly, without secrets, also after a kill; what was not recorded is named."""

import asyncio
import json
import subprocess
import sys
from contextlib import aclosing
from dataclasses import replace

import pytest
from faulty_server import Echo
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep.errors import BadInput
from keystep.lm.base import LM, Message, Request, Sample, ToolCall
from keystep.lm.replay import Record, Replay


class Once(Echo):
    """Gives the samples it is told to."""

    def __init__(self, *samples):
        super().__init__()
        self.samples = samples

    async def sample(self, request):
        for sample in self.samples:
            yield sample


def record(lm: LM, path, *requests: Request) -> list[list[Sample]]:
    """All samples of every request, in the order in which they came."""

    async def go():
        recorder = Record(lm, path)
        try:
            return [[sample async for sample in recorder.sample(request)] for request in requests]
        finally:
            await recorder.close()

    return asyncio.run(go())


def replay(path, *requests: Request) -> list[list[Sample]]:
    async def go():
        lm = Replay(path)
        return [[sample async for sample in lm.sample(request)] for request in requests]

    return asyncio.run(go())


texts = st.text(max_size=8)
messages = st.builds(Message, st.sampled_from(["user", "system"]), texts)
requests = st.builds(
    Request,
    texts | st.lists(messages, min_size=1, max_size=2).map(tuple),
    n=st.integers(1, 4),
    first=st.integers(0, 3),
    key=st.sampled_from(["a", "b"]),
    seed=st.integers(0, 1),
    temperature=st.sampled_from([0.0, 0.7]),
    stop=st.just(()) | st.just(("x",)),
    schema=st.none() | st.just({"type": "object"}),
)


@settings(max_examples=60)
@given(asked=st.lists(requests, min_size=1, max_size=4))
def test_what_was_recorded_is_replayed(tmp_path_factory, asked):
    path = tmp_path_factory.mktemp("replay") / "samples.jsonl"
    asked = [replace(request, key=f"{request.key}{i}") for i, request in enumerate(asked)]  # no question twice: the last answer counts
    recorded = record(Echo(), path, *asked)
    replayed = replay(path, *asked)
    for one, other in zip(recorded, replayed, strict=True):
        assert sorted(one, key=lambda s: s.index) == sorted(other, key=lambda s: s.index)


def test_everything_of_a_sample_comes_back_and_in_order(tmp_path):
    samples = (
        Sample("zwei\n\ud800", 1, 3, 4, -0.1 + -0.2, "length", 0.5, 1e-9, "m", (ToolCall("i", "f", "{}"),)),
        Sample("ein", 0, logprob=float("-inf")),
    )
    record(Once(*samples), tmp_path / "r.jsonl", Request("hi", n=2))
    assert replay(tmp_path / "r.jsonl", Request("hi", n=2)) == [list(samples)]


def test_samples_are_known_by_request_and_index(tmp_path):
    path = tmp_path / "r.jsonl"
    (whole,) = record(Echo(), path, Request("hi", n=5))
    by_index = {sample.index: sample for sample in whole}
    assert replay(path, Request("hi", n=2, first=3), Request("hi")) == [[by_index[4], by_index[3]], [by_index[0]]]
    with pytest.raises(BadInput, match=r"samples 0-4 were recorded, not 5-6"):
        replay(path, Request("hi", n=3, first=4))


def test_samples_that_were_cancelled_are_missed_only_when_wanted(tmp_path):
    path = tmp_path / "r.jsonl"

    async def go():
        recorder = Record(Echo(), path)
        async with aclosing(recorder.sample(Request("hi", n=3))) as samples:
            first = await anext(samples)
        await recorder.close()
        async with aclosing(Replay(path).sample(Request("hi", n=3))) as samples:
            assert await anext(samples) == first
            with pytest.raises(BadInput, match=r"samples 2 were recorded, not 0-1"):
                await anext(samples)

    asyncio.run(go())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Request("move disk 3", key="s", seed=2), r"differs in seed \(asked 2, recorded 1\)"),
        (Request("move disk 4", key="s", seed=1), r"differs in prompt \(from character 0: asked 'move disk 4', recorded 'move disk 3'\)"),
        (Request("move disk 3", key="s", seed=1, temperature=0.5), r"differs in temperature \(asked 0.5, recorded 1.0\)"),
        (Request("move disk 3", key="t", seed=1, stop=("x",)), r"differs in key .*, stop \(asked \['x'\], recorded \[\]\)"),
    ],
)
def test_a_request_that_was_not_recorded_is_told_what_differs(tmp_path, asked, said):
    path = tmp_path / "r.jsonl"
    record(Echo(), path, Request("another thing", key="q"), Request("move disk 3", key="s", seed=1))
    with pytest.raises(BadInput, match=said):
        replay(path, asked)


def test_identity_name_and_embeddings_are_the_recorded_models(tmp_path):
    path = tmp_path / "r.jsonl"

    class Known(Echo):
        def identity(self):
            return {"model": "echo", "weights": (1, 2)}

    async def go():
        recorder = Record(Known(), path)
        vectors = await recorder.embed(["a", "bcd"])
        await recorder.close()
        return recorder, vectors

    recorder, vectors = asyncio.run(go())
    again = Replay(path)
    assert (again.name, again.members) == (recorder.name, recorder.members) == ("echo", 3)
    assert json.dumps(again.identity()) == json.dumps(recorder.identity()) == json.dumps(Known().identity())
    assert again.embed_sync(["bcd", "a"]) == vectors[::-1]
    with pytest.raises(BadInput, match="was not recorded"):
        again.embed_sync(["b"])


def test_no_secret_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "opensesame-opensesame")
    path, secrets = tmp_path / "r.jsonl", ("sk-abcdefghijklmnop", "opensesame-opensesame")
    prompt = (Message("user", [{"type": "text", "text": f"my key is {secrets[0]} or {secrets[1]}"}]),)
    sample = Sample(f"Bearer {secrets[1]}", tool_calls=(ToolCall("i", "f", json.dumps({"key": secrets[0]})),))
    record(Once(sample), path, Request(prompt))
    written = path.read_text()
    assert "my key is" in written and not any(secret in written for secret in secrets)
    ((again,),) = replay(path, Request(prompt))  # found by the hash of the true request
    assert again.text == "Bearer [redacted]"


def test_a_kill_loses_nothing_and_a_cut_line_is_passed_over(tmp_path):
    path = tmp_path / "r.jsonl"
    child = (
        "import asyncio, os, signal, sys\n"
        "from faulty_server import Echo\n"
        "from keystep.lm.base import Request\n"
        "from keystep.lm.replay import Record\n"
        "async def go():\n"
        "    samples = Record(Echo(), sys.argv[1]).sample(Request('hi', n=3))\n"
        "    await anext(samples); await anext(samples)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(go())\n"
    )
    killed = subprocess.run([sys.executable, "-c", child, str(path)], env={"PYTHONPATH": str(__file__).rpartition("/")[0]}, timeout=60)
    assert killed.returncode == -9
    whole = path.read_bytes()
    assert [sample.index for sample in replay(path, Request("hi", n=2, first=1))[0]] == [2, 1]
    path.write_bytes(whole[:-5])  # as if the kill had come a moment earlier
    assert [sample.index for sample in replay(path, Request("hi", first=2))[0]] == [2]
    (again,) = record(Echo(), path, Request("hi", n=3))  # carried on
    assert sorted(sample.index for sample in replay(path, Request("hi", n=3))[0]) == [0, 1, 2]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert replay(path, Request("hi", n=3)) == [again]
    head = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(head[:10])  # killed within its first line
    assert record(Echo(), path, Request("hi")) == replay(path, Request("hi"))


def test_the_last_answer_to_a_question_counts(tmp_path):
    path = tmp_path / "r.jsonl"
    record(Once(Sample("old", 1), Sample("old", 0)), path, Request("hi", n=2))
    record(Once(Sample("new", 0), Sample("new", 1)), path, Request("hi", n=2))
    assert replay(path, Request("hi", n=2)) == [[Sample("new", 0), Sample("new", 1)]]


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"hello\n", b"[1]\n", b'{"keystep": "recording", "format": 99}\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n"]
)
def test_files_that_are_no_recordings_are_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        Replay(path)
    assert caught.value.field.startswith(str(path))
    if content:
        with pytest.raises(BadInput):
            Record(Echo(), path)
        assert path.read_bytes() == content


def test_broken_lines_other_models_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    record(Echo(), path, Request("hi"))
    with pytest.raises(BadInput, match="another model"):
        other = Echo()
        other.name = "other"
        Record(other, path)
    for line in (b"{}\n", b'{"ask": "x", "sample": {"colour": 1}}\n', b'{"ask": 1, "sample": 3}\n', b"{\n"):
        broken = tmp_path / "broken.jsonl"
        broken.write_bytes(path.read_bytes() + line + b"{}\n")
        with pytest.raises(BadInput, match="line 3 is no line of a recording"):
            Replay(broken)
    with pytest.raises(BadInput, match="cannot be read"):
        Replay(tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="cannot be written"):
        Record(Echo(), tmp_path / "no" / "folder.jsonl")
