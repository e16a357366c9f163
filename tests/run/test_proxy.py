"""The proxy over real HTTP: the whole request surface with the official SDK, sync and async, and with a bare HTTP client."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import openai
import pytest
from faulty_server import Echo, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from worker import Scripted, Worker, written

from keystep.errors import BadInput, Undecided
from keystep.lm.base import LM, Request, Sample, ToolCall
from keystep.lm.embedded.model import Embedded
from keystep.run import AheadBy, Budget, First, Journal, Majority, TooLong
from keystep.run.builtin import builtin
from keystep.run.proxy import KEY_HEADER, VOTE_HEADER, app
from keystep.run.voted import Voted, VoteKey

HANOI = builtin("hanoi", {"disks": 5})
PROMPTS = [HANOI.prompt(state) for state, _ in HANOI.truth()]
TRUTH = [written(prompt, 0) for prompt in PROMPTS]
ERRING = [0.65, 0.2, 0.05]  # right, two wrong answers; the rest is malformed


def said(text):
    return [{"role": "user", "content": text}]


def served(**models):
    return serving(app({name: model if isinstance(model, Voted) else Voted(model) for name, model in models.items()}))


@pytest.fixture(scope="module")
def erring():
    """The proxy over an erring worker; its `bare` neighbour answers without a vote."""
    worker = Worker(ERRING)
    with served(voted=worker, bare=Voted(worker, vote=First())) as address:
        yield address


@pytest.fixture(scope="module")
def client(erring):
    with openai.OpenAI(base_url=f"{erring}/v1", api_key="none", max_retries=3) as client:
        yield client


def ask(client, prompt, model="voted", **options):
    return client.chat.completions.create(model=model, messages=said(prompt), **options)


def raw(address, path, body, headers=None):
    """Status, headers and text of a request by a bare HTTP client."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"content-type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def test_voted_answers_are_right_where_single_ones_are_not(client):
    voted = [ask(client, prompt, seed=7).choices[0].message.content for prompt in PROMPTS]
    single = [ask(client, prompt, "bare", seed=7).choices[0].message.content for prompt in PROMPTS]
    assert voted == TRUTH
    assert sum(a != b for a, b in zip(single, TRUTH, strict=True)) >= 3


def test_voted_answers_of_the_embedded_models():
    with served(embedded=Embedded()) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        answers = [ask(client, prompt, "embedded", seed=1) for prompt in PROMPTS[:15]]
        assert [answer.choices[0].message.content for answer in answers] == TRUTH[:15]
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, "What is the capital of France?", "embedded")
        assert refused.value.code == "refused"


def test_the_ledger_and_the_sums(client):
    answer = ask(client, PROMPTS[3], seed=11)
    ledger = answer.choices[0].keystep
    votes = [candidate["votes"] for candidate in ledger["candidates"]]
    assert ledger["votes"] == votes[0] and votes == sorted(votes, reverse=True)
    assert ledger["samples"] == sum(votes) + ledger["flagged"] and votes[0] - sum(votes[1:2]) == 3
    drawn = [Worker(ERRING).answer(Request(PROMPTS[3], key="0/0/0", seed=seed_of(11)), index) for index in range(ledger["samples"])]
    assert answer.usage.completion_tokens == sum(map(len, drawn)) and answer.usage.prompt_tokens == len(PROMPTS[3])
    assert {candidate["answer"] for candidate in ledger["candidates"]} <= set(drawn)


def seed_of(seed):
    from keystep.lm.base import draw_key

    return draw_key(seed, "http") & 0x7FFFFFFF


def test_the_same_seed_is_the_same_answer_and_none_is_a_fresh_one(client):
    assert ask(client, PROMPTS[0], seed=5).choices[0] == ask(client, PROMPTS[0], seed=5).choices[0]
    assert len({ask(client, PROMPTS[0]).choices[0].keystep["samples"] for _ in range(12)}) > 1


def test_n_gives_independent_votes(client):
    answer = ask(client, PROMPTS[4], n=6, seed=2)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert {choice.message.content for choice in answer.choices} == {TRUTH[4]}
    assert len({choice.keystep["samples"] for choice in answer.choices}) > 1
    assert answer.usage.completion_tokens == sum(choice.usage["completion_tokens"] for choice in answer.choices)


def test_completions_of_several_prompts(client):
    answer = client.completions.create(model="voted", prompt=PROMPTS[:3], n=2, seed=3)
    assert [choice.text for choice in answer.choices] == [text for text in TRUTH[:3] for _ in range(2)]
    assert answer.choices[5].keystep["votes"] >= 3


def test_a_stream_tells_how_the_vote_goes_then_the_answer_then_the_usage(client):
    whole = ask(client, PROMPTS[6], seed=4)
    chunks = list(ask(client, PROMPTS[6], seed=4, stream=True, stream_options={"include_usage": True}))
    progress = [chunk.model_extra["keystep"] for chunk in chunks if "keystep" in chunk.model_extra]
    assert [told["samples"] for told in progress] == list(range(1, whole.choices[0].keystep["samples"] + 1))
    assert progress[-1]["votes"] == [candidate["votes"] for candidate in whole.choices[0].keystep["candidates"]]
    *_, text, end, usage = chunks
    assert text.choices[0].delta.content == whole.choices[0].message.content and text.choices[0].delta.role == "assistant"
    assert end.choices[0].finish_reason == "stop" and end.choices[0].keystep == whole.choices[0].keystep
    assert usage.choices == [] and usage.usage == whole.usage
    assert all(chunk.choices[0].delta.content is None for chunk in chunks[: len(progress)])


def test_the_sdk_puts_a_stream_together(client):
    with client.chat.completions.stream(model="voted", messages=said(PROMPTS[1]), seed=4) as stream:
        events = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert (message.role, message.content) == ("assistant", TRUTH[1]) and events.count("content.delta") == 1
    pieces = client.completions.create(model="voted", prompt=PROMPTS[1], stream=True, seed=4)
    assert "".join(piece.choices[0].text for piece in pieces) == TRUTH[1]


def test_a_bare_http_client_reads_the_stream(erring):
    body = {"model": "voted", "messages": said(PROMPTS[2]), "stream": True, "seed": 1, "n": 2}
    status, headers, text = raw(erring, "/v1/chat/completions", body)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    texts = {0: "", 1: ""}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: TRUTH[2], 1: TRUTH[2]}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks].count("stop") == 2


def test_fifty_interleaved_requests_answer_as_they_do_one_by_one(erring, client):
    asked = [(PROMPTS[i % len(PROMPTS)], i) for i in range(50)]
    alone = [ask(client, prompt, seed=seed) for prompt, seed in asked]

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{erring}/v1", api_key="none") as many:
            return await asyncio.gather(*(ask(many, prompt, seed=seed) for prompt, seed in asked))

    for one, other in zip(alone, asyncio.run(together()), strict=True):
        assert (one.choices, one.usage) == (other.choices, other.usage)


def test_the_async_sdk_streams(erring):
    async def read():
        async with openai.AsyncOpenAI(base_url=f"{erring}/v1", api_key="none") as client:
            stream = await ask(client, PROMPTS[5], seed=8, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(read()) == TRUTH[5]


# What the vote goes by.


def answering(*texts, **options):
    """The answer of a proxy over a model that says these, and the requests that the model got."""
    headers, voted = options.pop("headers", None), options.pop("voted", {})
    model = Scripted(list(texts))
    with served(m=Voted(model, **voted)) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        return ask(client, "hi", "m", extra_headers=headers, **options), model.requests


def test_the_text_is_the_key_unless_another_is_named():
    answer, _ = answering(" a ", "b", "a", "a", "a\n")
    assert answer.choices[0].message.content == " a "  # the winner's first sample, word for word
    assert answer.choices[0].keystep["candidates"] == [{"answer": "a", "votes": 4}, {"answer": "b", "votes": 1}]


def test_json_values_are_compared_and_malformed_ones_flagged():
    answer, _ = answering(
        '{"b": 1.0, "a": 2}', '{"a":2,"b":1}', '{"a": 2', "NaN", '"\\ud800"', '{"b": 10e-1, "a": 2.0}', headers={KEY_HEADER: "json"}
    )
    ledger = answer.choices[0].keystep
    assert ledger["candidates"] == [{"answer": {"a": 2, "b": 1}, "votes": 3}] and ledger["flagged"] == 3
    assert answer.choices[0].message.content == '{"b": 1.0, "a": 2}'


def test_a_regular_expression_is_read_by_its_last_match():
    texts = ("first 3, so 7", "it is 7", "no idea", "clearly 7", "8")
    for more in ({"headers": {KEY_HEADER: r"regex:\d+"}}, {"voted": {"key": r"regex:(\d+)"}}):
        answer, _ = answering(*texts, **more)
        assert answer.choices[0].keystep == {"votes": 3, "samples": 4, "flagged": 1, "candidates": [{"answer": "7", "votes": 3}]}
    answer, _ = answering("x=1 y=2", "y=2 x=1", "x=1  y=2", "x=1 y=2", headers={KEY_HEADER: r"regex:x=(?P<x>\d+) +y=(?P<y>\d+)"})
    assert answer.choices[0].keystep["candidates"][0]["answer"] == {"x": "1", "y": "2"}


def test_a_pattern_that_backtracks_for_ever_is_given_up():
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        answering("a" * 60 + "b", headers={KEY_HEADER: "regex:(a|aa)+$"}, voted={"vote": First(cap=1)})
    assert caught.value.body["keystep"]["flags"] == {"the match took too long": 1}


class Point(BaseModel):
    x: int
    y: int


SCHEMA = {"type": "json_schema", "json_schema": {"name": "point", "schema": Point.model_json_schema()}}


def test_a_schema_means_json_and_flags_what_does_not_follow_it():
    answer, requests = answering('{"x":1,"y":2}', '{"x":1}', "x", '{"y":2,"x":1}', '{"x": 1, "y": 2.0}', response_format=SCHEMA)
    assert Point.model_validate_json(answer.choices[0].message.content) == Point(x=1, y=2)
    assert (answer.choices[0].keystep["votes"], answer.choices[0].keystep["flagged"]) == (3, 2)
    assert requests[0].schema == Point.model_json_schema()
    by_x, _ = answering(
        '{"x":1,"y":2}', '{"x":1}', '{"x":1,"y":3}', '{"x":1,"y":4}', response_format=SCHEMA, headers={KEY_HEADER: r'regex:"x":(\d)'}
    )
    assert by_x.choices[0].keystep == {"votes": 3, "samples": 4, "flagged": 1, "candidates": [{"answer": "1", "votes": 3}]}


def test_the_sdk_parses_a_voted_answer_into_a_model():
    model = Scripted(['{"x":1,"y":2}'])
    with served(m=model) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        parsed = client.chat.completions.parse(model="m", messages=said("hi"), response_format=Point)
    assert parsed.choices[0].message.parsed == Point(x=1, y=2)


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("add", "mul")]


def calls(*told):
    return Sample("", tokens_out=2, finish="tool_calls", tool_calls=tuple(ToolCall(f"c{i}", *call) for i, call in enumerate(told)))


def calling(*samples, **options):
    model = Scripted(lambda request, index: samples[min(index, len(samples) - 1)])
    with served(m=model) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        stream = options.get("stream")
        answer = ask(client, "hi", "m", tools=TOOLS, **options)
        return (list(answer) if stream else answer.choices[0]), model.requests


def test_tool_calls_are_compared_by_name_and_arguments():
    told = [
        calls(("add", '{"a": 1, "b": 2}')),
        calls(("mul", '{"a": 1, "b": 2}')),
        "I would rather talk",
        calls(("sub", "{}")),
        calls(("add", "{")),
        calls(("add", '{"b":2,"a":1.0}')),
        calls(("add", '{"a":1,"b":2}')),
        calls(("add", '{"a":1,"b":2}')),
    ]
    choice, requests = calling(*told)
    call = choice.message.tool_calls[0].function
    assert (call.name, json.loads(call.arguments), choice.finish_reason) == ("add", {"a": 1, "b": 2}, "tool_calls")
    assert (choice.keystep["votes"], choice.keystep["flagged"]) == (4, 2) and requests[0].tools == tuple(TOOLS)
    chunks, _ = calling(*told, stream=True)
    (streamed,) = (call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ())
    assert (streamed.index, streamed.function.name) == (0, "add") and chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_tool_choice_is_kept_to():
    add, mul = calls(("add", "{}")), calls(("mul", "{}"))
    choice, _ = calling("talk", add, "talk", add, add, tool_choice="required")
    assert choice.message.tool_calls[0].function.name == "add" and choice.keystep["flagged"] == 2
    choice, requests = calling(add, mul, mul, mul, tool_choice={"type": "function", "function": {"name": "mul"}})
    assert choice.message.tool_calls[0].function.name == "mul" and choice.keystep["flagged"] == 1
    assert requests[0].tools == (TOOLS[1],)
    choice, requests = calling("talk", tool_choice="none")
    assert choice.message.content == "talk" and requests[0].tools == ()


# How it is sampled and decided.


def test_the_sampling_that_was_asked_for_reaches_the_model():
    options = {"temperature": 0.3, "top_p": 0.9, "max_completion_tokens": 9, "stop": ["x", "y"], "seed": 1}
    _, requests = answering("a", **options)
    asked = requests[0]
    assert (asked.temperature, asked.top_p, asked.max_tokens, asked.stop, asked.n) == (0.3, 0.9, 9, ("x", "y"), 3)
    model = Scripted(["a"])
    with serving(app({"m": Voted(model)}, default=Request("", temperature=0.2, max_tokens=7))) as address:
        raw(address, "/v1/chat/completions", {"model": "m", "messages": [*said("hi"), {"role": "assistant", "content": "so:"}]})
    assert (model.requests[0].temperature, model.requests[0].max_tokens, model.requests[0].prefix) == (0.2, 7, "so:")


@pytest.mark.parametrize(("header", "samples"), [("first", 1), ("ahead-by:1", 1), ("ahead-by:5", 5), ("majority:7", 4)])
def test_a_header_sets_the_rule(header, samples):
    answer, _ = answering("a", headers={VOTE_HEADER: header})
    assert answer.choices[0].keystep["votes"] == samples


def test_long_answers_are_flagged_and_an_answer_that_was_cut_says_so():
    answer, _ = answering("much too long", "a", "b", "a", "a", "a", voted={"flags": [TooLong(5)]})
    assert answer.choices[0].message.content == "a" and answer.choices[0].keystep["flagged"] == 1
    model = Scripted(lambda request, index: Sample("cut o", finish="length"))
    with served(m=model) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        assert ask(client, "hi", "m").choices[0].finish_reason == "length"


def test_embeddings_models_and_health_pass_through():
    with served(echo=Echo()) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        assert [row.embedding for row in client.embeddings.create(model="echo", input=["a"], encoding_format="float").data] == [[1.0, 0.25]]
        assert [model.id for model in client.models.list()] == ["echo"] and client.models.retrieve("echo").id == "echo"
        parts = urlsplit(address)
        connection = http.client.HTTPConnection(parts.hostname, parts.port)
        connection.request("GET", "/health")
        assert json.load(connection.getresponse()) == {"status": "ok"}
        connection.close()


# When it cannot answer.


def test_an_undecided_vote_is_an_error_with_its_ledger_and_is_not_tried_again():
    texts = ["a", "b", "", "a", "b"]
    model = Scripted(lambda request, index: texts[index % 5])
    voted = Voted(model, vote=AheadBy(3, cap=10))
    with served(m=voted) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=5) as client:
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            ask(client, "hi", "m")
        assert model.drawn == 10
        assert caught.value.code == "undecided" and "no winner after 10 samples" in caught.value.message
        ledger = caught.value.body["keystep"]
        assert ledger["candidates"] == [{"answer": "a", "votes": 4}, {"answer": "b", "votes": 4}]
        assert (ledger["samples"], ledger["flagged"], ledger["flags"]) == (10, 2, {"empty": 2})
        assert ledger["usage"]["completion_tokens"] == 8 and "keystep decide" not in caught.value.message
        with pytest.raises(openai.APIError) as broken:
            list(ask(client, "hi", "m", stream=True))
        assert broken.value.code == "undecided" and broken.value.body["keystep"]["samples"] == 10


def test_a_budget_is_each_requests_own():
    voted = Voted(Scripted(["a", "b"]), vote=AheadBy(3), budget=Budget(calls=4))
    with served(m=voted) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=5) as client:
        for _ in range(2):
            with pytest.raises(openai.UnprocessableEntityError) as caught:
                ask(client, "hi", "m")
            assert caught.value.code == "budget_spent" and "budget.calls" in caught.value.message


def test_a_failing_model_is_not_tried_again_by_the_sdk():
    with served(echo=Echo()) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, "boom", "echo")
        assert "secret" not in str(caught.value.body)


class Hanging(LM):
    """The first sample comes, the others never."""

    name = "hanging"

    def __init__(self):
        self.waiting, self.cancelled = threading.Event(), threading.Event()

    async def sample(self, request):
        yield Sample("a", request.first)
        try:
            self.waiting.set()
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_work(stream):
    model = Hanging()
    with served(m=model) as address:
        content = json.dumps({"model": "m", "messages": said("hi"), "stream": stream}).encode()
        parts = urlsplit(address)
        with socket.create_connection((parts.hostname, parts.port)) as left:
            left.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
            if stream:
                assert left.recv(10)
            assert model.waiting.wait(10)
        assert model.cancelled.wait(10)


def test_with_a_journal_every_request_is_a_run(tmp_path):
    journal = tmp_path / "runs.db"
    voted, bare = Voted(Worker(ERRING, pause=True), journal=journal), Voted(Worker(ERRING))

    async def ten(client, model):
        return await asyncio.gather(*(ask(client, PROMPTS[0], model, seed=seed, n=2) for seed in range(10)))

    async def both(address):
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            return await ten(client, "m"), await ten(client, "bare")

    with served(m=voted, bare=bare) as address:
        kept, unkept = asyncio.run(both(address))
    assert [(answer.choices, answer.usage) for answer in kept] == [(answer.choices, answer.usage) for answer in unkept]
    store = Journal(journal)
    runs = {run["id"]: run for run in store.all_runs()}
    assert runs.keys() == {answer.id for answer in kept} and {run["status"] for run in runs.values()} == {"finished"}
    for answer in kept:
        assert [each["text"] for each in runs[answer.id]["result"]] == [choice.message.content for choice in answer.choices]
    store.close()


# What it refuses.

GOOD = {"model": "m", "messages": said("hi")}
REFUSED = [
    ({"logprobs": True}, {}, "logprobs"),
    ({"presence_penalty": 0.5}, {}, "presence_penalty"),
    ({"frequency_penalty": 0.5}, {}, "frequency_penalty"),
    ({"logit_bias": {"5": 3}}, {}, "logit_bias"),
    ({"top_logprobs": 3}, {}, "top_logprobs"),
    ({"n": 65}, {}, "n"),
    ({"tool_choice": "required"}, {}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "some"}, {}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}}, {}, "tool_choice.function.name"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}}, {}, None),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1:9/x"}}}}, {}, None),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}}, {}, None),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"patternProperties": {"(": {}}}}}}, {}, "response_format"),
    ({}, {KEY_HEADER: "xml"}, KEY_HEADER),
    ({}, {KEY_HEADER: "regex:"}, KEY_HEADER),
    ({}, {KEY_HEADER: "regex:("}, KEY_HEADER),
    ({}, {KEY_HEADER: "regex:(a)(b)"}, KEY_HEADER),
    ({}, {KEY_HEADER: "json:x"}, KEY_HEADER),
    ({}, {KEY_HEADER: "regex:" + "a" * 1001}, KEY_HEADER),
    ({}, {VOTE_HEADER: "ahead-by:11"}, VOTE_HEADER),
    ({}, {VOTE_HEADER: "ahead-by:0"}, VOTE_HEADER),
    ({}, {VOTE_HEADER: "ahead-by:"}, VOTE_HEADER),
    ({}, {VOTE_HEADER: "majority:-1"}, VOTE_HEADER),
    ({}, {VOTE_HEADER: "unanimous"}, VOTE_HEADER),
]


@pytest.fixture(scope="module")
def objects():
    """The proxy over a model that always says the same JSON object, with a low cap."""
    with served(m=Voted(Scripted(['{"a": 1}']), vote=AheadBy(3, cap=12))) as address:
        yield address


@pytest.mark.parametrize(("change", "headers", "field"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_a_400_that_names_it(objects, change, headers, field, stream):
    status, _, text = raw(objects, "/v1/chat/completions", GOOD | change | {"stream": stream}, headers)
    error = json.loads(text)["error"]
    assert status == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == field if field else error["param"].startswith("response_format.json_schema.schema")


def test_fields_that_ask_for_nothing_are_taken(objects):
    body = {"presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "logit_bias": None, "user": "me", "modalities": ["text"]}
    assert raw(objects, "/v1/chat/completions", GOOD | body)[0] == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "function", "name", "$ref", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = ["messages", "n", "temperature", "top_p", "max_tokens", "stop", "seed", "logprobs", "tools", "tool_choice", "response_format"]
FIELDS += ["stream", "stream_options"]
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8)
SCHEMAS = st.dictionaries(
    st.sampled_from(
        ["type", "$ref", "$schema", "pattern", "enum", "multipleOf", "minimum", "properties", "items", "allOf", "$defs", "$id"]
    ),
    JSON | st.sampled_from(["object", "#", "http://[", "#/$defs/a", "("]),
    max_size=3,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    change=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
    schema=st.none() | SCHEMAS,
    key=st.none() | st.sampled_from(["json", "text"]) | WORDS.map("regex:{}".format),
    vote=st.none() | st.sampled_from(["ahead-by", "majority"]).flatmap(lambda rule: st.integers(-1, 12).map(f"{rule}:{{}}".format)) | WORDS,
)
def test_hostile_requests_are_answered_or_refused(objects, change, schema, key, vote):
    form = {} if schema is None else {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    headers = {name: value for name, value in ((KEY_HEADER, key), (VOTE_HEADER, vote)) if value is not None}
    status, _, text = raw(objects, "/v1/chat/completions", GOOD | change | form, headers)
    assert status in (200, 400, 422), text
    assert "internal error" not in text
    if status == 400:
        assert json.loads(text)["error"]["param"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}']
)
def test_a_malformed_body_is_a_400(objects, body):
    assert raw(objects, "/v1/chat/completions", body)[0] == 400


@pytest.mark.parametrize("text", ['"\\ud800"', "[" * 100_000 + "]" * 100_000, "1e999", "-Infinity", "9" * 5000, "\ud800", ""])
def test_hostile_answers_of_the_model_are_flagged(text):
    voted = Voted(Scripted([text]), vote=AheadBy(2, cap=4), key="json")
    with pytest.raises(Undecided, match="none of 4 samples"):
        voted.complete_sync("hi")


# The same without HTTP.


def test_a_voted_model_is_a_model():
    model = Scripted(["a", "b", "a", "a", "a"])
    voted = Voted(model, vote=Majority(5))
    (sample,) = voted.complete_sync("hi", seed=1)
    assert (sample.text, sample.tokens_out, sample.logprob, sample.index) == ("a", 4, None, 0)
    assert voted.identity() == {"voted": "scripted", "vote": repr(Majority(5)), "key": "text", "flags": []}
    worker = Voted(Worker(ERRING))
    three, two = (worker.complete_sync(PROMPTS[0], n=3 - first, first=first, seed=1, key="s") for first in (0, 1))
    assert [(each.index, each.text, each.tokens_out) for each in three[1:]] == [(each.index, each.text, each.tokens_out) for each in two]


def test_a_voted_model_cancels_the_samples_in_flight():
    model = Scripted(["a"], hang=[2])

    async def leave():
        two = asyncio.Event()
        deciding = asyncio.ensure_future(Voted(model).decide([Request("hi")], tell=lambda index, how: how["samples"] == 2 and two.set()))
        await two.wait()
        deciding.cancel()
        await asyncio.gather(deciding, return_exceptions=True)

    asyncio.run(leave())
    assert model.cancelled == [2]


def test_keys_are_read_and_checked():
    assert str(VoteKey.read("regex:a:b")) == "regex:a:b" and VoteKey.read("json") == VoteKey("json")
    for bad in ("", "regex", "regex:(", "text:x", "yaml"):
        with pytest.raises(BadInput, match="key"):
            VoteKey.read(bad)
