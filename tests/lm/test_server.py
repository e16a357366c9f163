"""The model server over real HTTP, with the official SDK as its client."""

import json
import math
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
from faulty_server import Echo, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystep.errors import BadInput
from keystep.lm.server import app, serve


@pytest.fixture(scope="module")
def echo():
    return Echo()


@pytest.fixture(scope="module")
def address(echo):
    with serving(app({"echo": echo, "other": Echo()})) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(address, path, body):
    """Status and JSON of a raw request; `body` is bytes, or something to write as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, data, {"content-type": "application/json"})) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_models_and_health(client, address):
    assert [model.id for model in client.models.list()] == ["echo", "other"]
    assert client.models.retrieve("echo").owned_by == "keystep"
    with urllib.request.urlopen(f"{address}/health") as answer:
        assert json.load(answer) == {"status": "ok"}


def test_completions_through_the_sdk(client, echo):
    answer = client.completions.create(
        model="echo", prompt="hi", n=3, seed=5, logprobs=1, temperature=0.3, top_p=0.9, max_tokens=9, stop=["x", "y"]
    )
    assert [choice.text for choice in answer.choices] == [f"hi//5/http/{i}" for i in range(3)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.logprobs.token_logprobs for choice in answer.choices] == [[-0.5], [-1.5], [-2.5]]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 9, 16)
    asked = echo.asked[-1]
    assert (asked.temperature, asked.top_p, asked.max_tokens, asked.stop, asked.seed) == (0.3, 0.9, 9, ("x", "y"), 5)


def test_a_list_of_prompts_numbers_its_choices_on(client):
    answer = client.completions.create(model="echo", prompt=["a", "b"], n=2, seed=0)
    assert [choice.text for choice in answer.choices] == ["a//0/http/0", "a//0/http/1", "b//0/http/2", "b//0/http/3"]


def test_chat_through_the_sdk(client, echo):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "so:"}]
    answer = client.chat.completions.create(model="echo", messages=messages, seed=1, logprobs=True, max_completion_tokens=4, stop="z")
    assert answer.choices[0].message.content == "hi/so:/1/http/0"
    assert sum(token.logprob for token in answer.choices[0].logprobs.content) == -0.5
    asked = echo.asked[-1]
    assert (asked.prefix, asked.max_tokens, asked.stop) == ("so:", 4, ("z",))
    assert [message.role for message in asked.prompt] == ["system", "user"]


def test_tools_and_schema_come_and_go(client, echo):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "array"}}}
    history = [
        {"role": "user", "content": "call it"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c0", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c0", "content": "call again"},
    ]
    answer = client.chat.completions.create(model="echo", messages=history, tools=tools, response_format=form)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"a": 1}'
    asked = echo.asked[-1]
    assert asked.tools == tuple(tools) and asked.schema == {"type": "array"}
    assert asked.prompt[1].tool_calls[0].name == "f" and asked.prompt[2].tool_call_id == "c0"


def test_streams_of_both_kinds(client):
    chunks = list(client.completions.create(model="echo", prompt="hi", n=2, seed=3, stream=True, stream_options={"include_usage": True}))
    assert {chunk.choices[0].index: chunk.choices[0].text for chunk in chunks[:-1]} == {0: "hi//3/http/0", 1: "hi//3/http/1"}
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 5

    texts, ends = {0: "", 1: ""}, {}
    for chunk in client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "call"}], n=2, seed=3, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] = choice.finish_reason
    assert texts == {0: "call//3/http/0", 1: "call//3/http/1"} and ends == {0: "tool_calls", 1: "tool_calls"}


def test_without_a_seed_each_request_draws_its_own(client):
    one, two = (client.completions.create(model="echo", prompt="hi").choices[0].text for _ in range(2))
    assert one != two


def test_embeddings(client):
    answer = client.embeddings.create(model="echo", input=["a", "bcd"], encoding_format="float")
    assert [row.embedding for row in answer.data] == [[1.0, 0.25], [3.0, 0.25]]


def test_a_refusal_is_a_400_that_says_what_the_model_knows(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="echo", prompt="refuse", stream=True)
    assert caught.value.code == "refused" and "it knows everything else" in caught.value.message


def test_an_unknown_model_is_a_404_that_names_the_known(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="none", prompt="hi")
    assert caught.value.code == "model_not_found" and "echo, other" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


def test_a_failure_inside_is_a_500_without_its_story(address, client):
    for path, body in (
        ("/v1/completions", {"prompt": "boom"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "boom"}]}),
    ):
        status, answer = post(address, path, body | {"model": "echo"})
        assert status == 500 and answer["error"]["message"] == "internal error" and "secret" not in json.dumps(answer)
    assert post(address, "/v1/nowhere", {})[0] == 404


GOOD = {
    "/v1/completions": {"model": "echo", "prompt": "a"},
    "/v1/chat/completions": {"model": "echo", "messages": [{"role": "user", "content": "a"}]},
}


@pytest.mark.parametrize(
    ("path", "change", "field"),
    [
        ("/v1/completions", {"prompt": None}, "prompt"),
        ("/v1/completions", {"prompt": [1, 2]}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"n": "three"}, "n"),
        ("/v1/completions", {"n": True}, "n"),
        ("/v1/completions", {"n": 0}, "n"),
        ("/v1/completions", {"n": 10**9}, "n"),
        ("/v1/completions", {"temperature": 2.5}, "temperature"),
        ("/v1/completions", {"temperature": math.nan}, "temperature"),
        ("/v1/completions", {"top_p": -1}, "top_p"),
        ("/v1/completions", {"max_tokens": 1.5}, "max_tokens"),
        ("/v1/completions", {"stop": [""]}, "stop"),
        ("/v1/completions", {"seed": "x"}, "seed"),
        ("/v1/completions", {"stream": 1}, "stream"),
        ("/v1/completions", {"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ("/v1/completions", {"model": None}, "model"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": ["hi"]}, "messages[0]"),
        ("/v1/chat/completions", {"messages": [{"role": "pope", "content": "a"}]}, "messages[0].role"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        ("/v1/chat/completions", {"tools": ["a"]}, "tools"),
        ("/v1/chat/completions", {"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(address, path, change, field):
    status, answer = post(address, path, GOOD[path] | change)
    assert status == 400 and answer["error"]["param"] == field and answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": "echo", "prompt": "\\ud800"}'])
def test_a_malformed_body_is_a_400(address, body):
    status, answer = post(address, "/v1/completions", body)
    assert status == 400 and answer["error"]["param"] == "body"


def test_unknown_fields_are_ignored(address):
    assert post(address, "/v1/completions", GOOD["/v1/completions"] | {"user": "me", "colour": 3, "best_of": None})[0] == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "function", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = [
    "prompt",
    "messages",
    "n",
    "temperature",
    "top_p",
    "max_tokens",
    "stop",
    "seed",
    "logprobs",
    "tools",
    "response_format",
    "stream_options",
]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(sorted(GOOD)), change=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_any_body_is_answered_or_refused_by_name(address, path, change):
    status, answer = post(address, path, GOOD[path] | change)
    assert status in (200, 400)
    assert ("choices" in answer) if status == 200 else answer["error"]["param"]


def test_a_client_that_leaves_stops_the_work(address, echo):
    content = json.dumps({"model": "echo", "prompt": "wait"}).encode()
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
        assert echo.waiting.wait(10)
    assert echo.cancelled.wait(10)


def test_serve_runs_until_interrupted_and_names_a_taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match="port: cannot listen"):
            serve({"echo": Echo()}, port=port)
    child = f"from faulty_server import Echo; from keystep.lm.server import serve; serve({{'echo': Echo()}}, port={port})"
    env = {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", child], env=env, stderr=subprocess.PIPE) as process:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=8) as client:
            assert [model.id for model in client.models.list()] == ["echo"]
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == b"" and process.returncode == 0


def test_only_loopback_unless_allowed_and_only_real_ports():
    for host in ("0.0.0.0", "example.org", "::", "10.0.0.1"):
        with pytest.raises(BadInput, match="host"):
            serve({"echo": Echo()}, host)
    with pytest.raises(BadInput, match="port"):
        serve({"echo": Echo()}, port=70000)
    with pytest.raises(BadInput, match="lms"):
        app({})
