"""The endpoint against keystep's own server over real HTTP, and against servers that misbehave."""

import asyncio
import base64
import json
import time
from contextlib import aclosing, suppress
from dataclasses import replace
from email.utils import formatdate

import pytest
from faulty_server import Echo, Faulty, chat_answer, error_answer, serving
from hypothesis import given
from hypothesis import strategies as st

from keystep.errors import BadInput, ModelError, Refused
from keystep.lm import lm as make
from keystep.lm.base import Message, Request, Sample, ToolCall, draw_key
from keystep.lm.endpoint import Endpoint
from keystep.lm.limits import Bucket, Gate, Pace
from keystep.lm.redact import redact
from keystep.lm.server import app

KEY = "sk-verysecretkey0123456789"


@pytest.fixture(scope="module")
def echo():
    return Echo()


@pytest.fixture(scope="module")
def address(echo):
    with serving(app({"echo": echo})) as address:
        yield f"{address}/v1"


def quick(base_url, model="m", **options):
    return Endpoint(model, base_url, KEY, **{"backoff": 0.001, "retries": 2, "timeout": 5} | options)


def seed_of(request, index):
    return draw_key(request.seed, request.key, index) & 0x7FFFFFFF


# against the real server


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_samples_over_http_equal_samples_in_process(address, echo, api):
    request = Request("hi", n=4, first=2, key="run/step", seed=9, temperature=0.5, top_p=0.8, max_tokens=33, stop=("q",))
    lm = quick(address, "echo", api=api)
    got = lm.complete_sync("hi", **{f: getattr(request, f) for f in request.__slots__ if f != "prompt"})
    seed = seed_of(request, 2)
    here = Echo().complete_sync("hi", n=4, key="http", seed=seed)
    assert all(sample.seconds > 0 for sample in got)
    assert [replace(s, seconds=0.0) for s in got] == [replace(s, index=s.index + 2, model="echo") for s in here]
    asked = echo.asked[-1]
    assert (asked.temperature, asked.top_p, asked.max_tokens, asked.stop, asked.seed) == (0.5, 0.8, 33, ("q",), seed)


def test_messages_prefix_schema_and_tools_arrive(address, echo):
    call = ToolCall("c0", "f", '{"b": 2}')
    prompt = (
        Message("system", "be brief"),
        Message("user", [{"type": "text", "text": "hi"}], name="ann"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "please call", tool_call_id="c0"),
    )
    options = {"prefix": "so:", "schema": {"type": "array"}, "tools": ({"type": "function", "function": {"name": "add"}},)}
    (sample,) = quick(address, "echo").complete_sync(prompt, **options)
    asked = echo.asked[-1]
    assert (asked.prompt, asked.prefix, asked.schema, asked.tools) == (prompt, *options.values())
    assert sample.finish == "tool_calls" and sample.tool_calls == (ToolCall("c1", "add", '{"a": 1}'),)


@pytest.mark.parametrize(
    ("end", "api", "asked"),
    [
        ("", None, "/v1/chat/completions"),
        ("/chat/completions/", None, "/v1/chat/completions"),
        ("/completions", None, "/v1/completions"),
        ("/completions?version=3", None, "/v1/completions?version=3"),
        ("/completions", "chat", "/v1/chat/completions"),
    ],
)
def test_the_address_tells_the_interface(end, api, asked):
    server = Faulty((200, {}, chat_answer("a") if "chat" in asked else {"choices": [{"text": "a"}]}))
    with server.serving() as url:
        model = make(f"{url}{end}#m", api_key=KEY, api=api)
        assert model.complete_sync("hi")[0].text == "a"
        assert server.headers[0][":path"] == asked and model.identity()["base_url"] == url


def test_completions_continue_the_prefix_and_take_only_text(address):
    lm = quick(address, "echo", api="completions")
    assert lm.complete_sync("hi ", prefix="so")[0].text.startswith("hi so/")
    for prompt, options in (((Message("user", "a"),), {}), ("a", {"tools": ({},)}), ("a", {"schema": {"type": "object"}})):
        with pytest.raises(BadInput, match="chat"):
            lm.complete_sync(prompt, **options)


def test_embeddings_prices_and_identity(address, tmp_path):
    table = tmp_path / "prices.json"
    table.write_text(json.dumps({"echo": {"input": 1e6, "output": 2e6}}))
    lm = quick(address, "echo", prices=table)
    assert lm.embed_sync(["a"] * 300 + ["abc"])[-2:] == [[1.0, 0.25], [3.0, 0.25]] and lm.embed_sync([]) == []
    assert [sample.cost for sample in lm.complete_sync("hi", n=2)] == [7 + 2 * 2, 0 + 2 * 3]
    secret = Endpoint("echo", "http://me:password@127.0.0.1:1/v1?key=hidden", KEY, extra_body={"top_k": 3})
    assert secret.identity() == {"model": "echo", "base_url": "http://127.0.0.1:1/v1", "api": "chat", "extra_body": {"top_k": 3}}


def test_user_password_and_query_of_the_address_are_sent():
    server = Faulty((200, {}, chat_answer("ok")))
    with server.serving() as url:
        quick(url.replace("//", "//me:pass%20word@") + "/?version=3").complete_sync("hi")
    (sent,) = server.headers
    assert sent["authorization"] == f"Basic {base64.b64encode(b'me:pass word').decode()}"
    assert sent[":path"] == "/v1/chat/completions?version=3"


def test_the_proxy_that_the_environment_names_is_used(monkeypatch):
    server = Faulty((200, {}, chat_answer("ok")))
    with server.serving() as url:
        monkeypatch.setenv("http_proxy", url.removesuffix("/v1"))
        assert quick("http://models.invalid/v1").complete_sync("hi")[0].text == "ok"
        assert server.headers[0][":path"] == "http://models.invalid/v1/chat/completions"
        monkeypatch.setenv("no_proxy", "models.invalid")
        with pytest.raises(ModelError, match="connection failed"):
            quick("http://models.invalid/v1", retries=0).complete_sync("hi")


def test_a_refusal_and_an_unknown_model_are_typed_and_not_retried(address, echo):
    before = len(echo.asked)
    with pytest.raises(Refused, match="it knows everything else"):
        quick(address, "echo").complete_sync("refuse")
    assert len(echo.asked) == before + 1
    with pytest.raises(ModelError, match=r"404.*no such model"):
        quick(address, "none").complete_sync("hi")


def test_one_endpoint_serves_several_event_loops_and_closes_its_connections(address):
    lm = quick(address, "echo")
    clients = []

    async def ask():
        await lm.complete("hi")
        clients.extend(here.session for here in lm._loops.values())

    asyncio.run(ask())
    asyncio.run(ask())
    assert len(lm._loops) == 1 and all(client.closed for client in clients)

    async def close():
        await ask()
        await lm.close()
        assert not lm._loops and clients[-1].closed
        assert await lm.complete("again")

    asyncio.run(close())


def test_the_embedded_models_answer_over_http_as_in_process():
    from keystep.lm import lm
    from keystep.lm.embedded import hanoi

    embedded, prompt = lm("embedded"), hanoi.render(None, [[4, 3, 2, 1], [], []])
    with serving(app({"embedded": embedded})) as address:
        far = quick(f"{address}/v1", "embedded")
        got = far.complete_sync(prompt, n=5, key="step", seed=4)
        with pytest.raises(Refused, match="Tower of Hanoi"):
            far.complete_sync("What is the capital of France?")
    here = embedded.complete_sync(prompt, n=5, key="http", seed=seed_of(Request(prompt, key="step", seed=4), 0))
    assert [(s.text, s.logprob, s.tokens_out, s.finish) for s in got] == [(s.text, s.logprob, s.tokens_out, s.finish) for s in here]
    assert sum(s.tokens_in for s in got) == sum(s.tokens_in for s in here)


# faults


@pytest.mark.parametrize(
    "fault",
    [
        (429, {"retry-after": "0"}, error_answer("slow down")),
        (429, {"retry-after-ms": "1"}, error_answer("slow down")),
        (429, {"retry-after": formatdate(0, usegmt=True)}, error_answer("slow down")),
        (429, {"retry-after": "soon"}, error_answer("slow down")),
        (408, {}, {}),
        (409, {}, {}),
        (500, {}, {}),
        (503, {}, "not even an object"),
        (200, {}, chat_answer()),
        (200, {}, {"choices": None}),
        (200, {}, {"choices": [{"message": None}]}),
        (200, {}, []),
        (200, {}, error_answer("upstream broke")),
        (200, {"content-type": "text/html"}, "<html>"),
        (200, {}, b'{"choices": [{"message": {"content": "ok"}]'),
        (200, {}, b""),
        "reset",
        "truncated",
        "short",
        "cut",
    ],
    ids=str,
)
def test_a_passing_fault_is_tried_again(fault):
    server = Faulty(fault, fault, (200, {}, chat_answer("ok")))
    with server.serving() as url:
        (sample,) = quick(url).complete_sync("hi")
    assert sample == Sample("ok", model="m", seconds=sample.seconds)
    assert len(server.bodies) == 3 and server.bodies[0] == server.bodies[2]


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_hanging_server_times_out_and_is_tried_again(fault):
    server = Faulty(fault, (200, {}, chat_answer("ok")))
    with server.serving() as url:
        lm = quick(url, timeout=0.2)
        assert lm.complete_sync("hi")[0].text == "ok" and server.left.acquire(timeout=10)
        assert lm._pace.width == 32  # a sign of overload


def test_after_all_tries_the_error_says_what_happened():
    server = Faulty((500, {}, error_answer("disk on fire")))
    said = r"m at http://127\.0\.0\.1:\d+/v1: it answered 500: disk on fire, after 3 tries"
    with server.serving() as url, pytest.raises(ModelError, match=said):
        quick(url).complete_sync("hi")
    assert len(server.bodies) == 3
    with pytest.raises(ModelError, match="connection failed"):
        quick(url).complete_sync("hi")  # nobody listens there now


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_lasting_fault_is_not_tried_again_and_shows_no_secret(status):
    server = Faulty((status, {}, error_answer(f"Incorrect API key provided: {KEY} of sk-other0123456789, header tok3n-value")))
    with server.serving() as url, pytest.raises(ModelError, match="Incorrect API key") as caught:
        quick(url, headers={"X-Token": "tok3n-value"}).complete_sync("hi")
    assert len(server.bodies) == 1
    assert (server.headers[0]["authorization"], server.headers[0]["x-token"]) == (f"Bearer {KEY}", "tok3n-value")
    said = f"{caught.value} {caught.value.__dict__}"
    assert caught.value.__suppress_context__ and not any(secret in said for secret in (KEY, "sk-other", "tok3n"))


def test_an_empty_account_and_a_long_wait_end_the_tries():
    for answer, said in (
        ((429, {}, error_answer("you ran out", code="insufficient_quota")), "check the account"),
        ((429, {"retry-after": "4000"}, error_answer("come tomorrow")), "asks to wait 4000 s"),
    ):
        server = Faulty(answer)
        with server.serving() as url, pytest.raises(ModelError, match=said):
            quick(url).complete_sync("hi")
        assert len(server.bodies) == 1


def test_retry_after_is_waited_for():
    server = Faulty((429, {"retry-after": "0.3"}, {}), (503, {"retry-after-ms": "200"}, {}), (200, {}, chat_answer("ok")))
    with server.serving() as url:
        began = time.monotonic()
        quick(url).complete_sync("hi")
        assert time.monotonic() - began >= 0.5


# what a server does not support


def test_a_server_that_ignores_n_is_found_out_once():
    server = Faulty(lambda body: (200, {}, chat_answer(str(body["seed"]), usage={"prompt_tokens": 10, "completion_tokens": 3})))
    with server.serving() as url:
        lm = quick(url)
        first = lm.complete_sync("hi", n=3, seed=1, key="a")
        second = lm.complete_sync("hi", n=2, first=3, seed=1, key="a")
    request = Request("hi", seed=1, key="a")
    assert [body.get("n") for body in server.bodies] == [3, None, None, None, None]
    assert [(sample.index, sample.text) for sample in first + second] == [(i, str(seed_of(request, i))) for i in range(5)]
    assert [(sample.tokens_in, sample.tokens_out) for sample in first] == [(10, 3)] * 3


def test_a_server_that_refuses_n_and_one_that_gives_too_many():
    def one_at_a_time(body):
        return (400, {}, error_answer("Only one choice: 'n' is not supported")) if "n" in body else (200, {}, chat_answer("a"))

    server = Faulty(one_at_a_time)
    with server.serving() as url:
        assert [sample.index for sample in quick(url).complete_sync("hi", n=3)] == [0, 1, 2]
    with Faulty((200, {}, chat_answer("a", "b", "c", "d"))).serving() as url:
        assert [sample.text for sample in quick(url).complete_sync("hi", n=2)] == ["a", "b"]


def test_separate_requests_come_as_they_finish_and_are_cancelled_when_closed():
    server = Faulty((200, {}, chat_answer("a")), (200, {}, chat_answer("b")), "hang")

    async def first_two(url):
        lm, texts = quick(url), []
        async with aclosing(lm.sample(Request("hi", n=4))) as samples:
            async for sample in samples:
                texts.append(sample.text)
                if len(texts) == 2:
                    assert await asyncio.to_thread(lambda: all(server.hanging.acquire(timeout=10) for _ in range(2)))
                    break
        assert await asyncio.to_thread(lambda: all(server.left.acquire(timeout=10) for _ in range(2)))
        here = await lm._here()
        assert here.gate.inside == 0
        return texts

    with server.serving() as url:
        assert sorted(asyncio.run(first_two(url))) == ["a", "b"]


def test_cancelling_the_asker_closes_the_pending_request():
    server = Faulty("hang")

    async def ask(url):
        task = asyncio.create_task(quick(url).complete("hi", n=2))
        assert await asyncio.to_thread(server.hanging.acquire, timeout=10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.left.acquire, timeout=10)

    with server.serving() as url:
        asyncio.run(ask(url))


@pytest.mark.parametrize("read", [True, False])
def test_a_prompt_larger_than_the_buffers_goes_out_whole_or_is_cancelled(read, caplog):
    prompt, got, answer = "x" * 20_000_000, [], json.dumps(chat_answer("yes")).encode()

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        if read:
            [length] = [int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length")]
            got.append(json.loads(await reader.readexactly(length)))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))
        else:
            with suppress(ConnectionError):
                await reader.read()
        writer.close()
        left.set()

    async def ask():
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            lm = quick(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", timeout=30)
            task = asyncio.create_task(lm.complete(prompt))
            await arrived.wait()
            if not read:
                task.cancel()
            try:
                return await task
            finally:
                await lm.close()
                await left.wait()

    arrived, left = asyncio.Event(), asyncio.Event()
    if read:
        [sample] = asyncio.run(ask())
        assert sample.text == "yes" and got[0]["messages"][0]["content"] == prompt
    else:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(ask())
    assert not caplog.records


def picky(body):
    """A reasoning model, in the words of the official server."""
    if "max_tokens" in body:
        message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        return 400, {}, error_answer(message, param="max_tokens", code="unsupported_parameter")
    if "temperature" in body:
        message = "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) value is supported."
        return 400, {}, error_answer(message, param="temperature", code="unsupported_value")
    if "stop" in body:
        return 400, {}, error_answer("Unrecognized request argument: `stop`")
    return 200, {}, chat_answer(f"{body['max_completion_tokens']} END rest")


def test_a_reasoning_model_is_found_out_once():
    server = Faulty(picky)
    with server.serving() as url:
        lm = quick(url, retries=0)
        for _ in range(2):
            assert lm.complete_sync("hi", temperature=0.2, max_tokens=77, stop=("END",))[0].text == "77 "  # stops are cut here then
    assert len(server.bodies) == 4 + 1


def test_reasoning_can_be_said_or_forbidden():
    server = Faulty(picky)
    with server.serving() as url:
        assert quick(url, reasoning=True).complete_sync("hi", temperature=0.2, top_p=0.5)[0].text.startswith("512")
        assert len(server.bodies) == 1 and not server.bodies[0].keys() & {"temperature", "top_p", "max_tokens"}
        with pytest.raises(ModelError, match="max_tokens"):
            quick(url, reasoning=False).complete_sync("hi")


def test_a_wrong_value_is_not_mistaken_for_an_unsupported_parameter():
    server = Faulty((400, {}, error_answer("temperature must be at most 2", param="temperature")))
    with server.serving() as url, pytest.raises(ModelError, match="at most 2"):
        quick(url).complete_sync("hi", temperature=3)


def test_logprobs_tokens_and_finish_are_read():
    choices = [
        {"message": {"content": "ab"}, "finish_reason": "length", "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -0.25}]}},
        {"message": {"content": None, "refusal": "no"}, "finish_reason": None, "logprobs": {"content": [{"logprob": -1.0}]}},
    ]
    with Faulty((200, {}, {"choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 3}})).serving() as url:
        a, b = quick(url).complete_sync("hi", n=2)
    assert (a.text, a.finish, a.logprob, a.tokens_in, a.tokens_out) == ("ab", "length", -0.75, 5, 2)
    assert (b.text, b.finish, b.logprob, b.tokens_in, b.tokens_out) == ("no", "stop", -1.0, 0, 1)


def test_a_zero_temperature_and_extra_fields_are_sent():
    server = Faulty((200, {}, chat_answer("a")))
    with server.serving() as url:
        quick(url, extra_body={"top_k": 1}, logprobs=False).complete_sync("hi", temperature=0, prefix="x")
    (body,) = server.bodies
    assert body["temperature"] == 0 and body["top_k"] == 1 and "logprobs" not in body and "top_p" not in body
    assert body["messages"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"base_url": "ftp://x/v1"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"base_url": "http://[x/v1"}, "base_url"),
        ({"base_url": "http://h:99999/v1"}, "base_url"),
        ({"base_url": None}, "api_key"),
        ({"timeout": 0}, "timeout"),
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"concurrency": 0}, "concurrency"),
        ({"retries": -1}, "retries"),
        ({"api": "responses"}, "api"),
        ({"prices": {"other": {"input": 1, "output": 1}}}, "prices"),
        ({"prices": {"m": {"input": -1, "output": 1}}}, "prices"),
        ({"prices": "/nowhere/prices.json"}, "prices"),
    ],
)
def test_bad_options_are_named(monkeypatch, options, field):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadInput) as caught:
        Endpoint("m", **{"base_url": "http://127.0.0.1:1/v1"} | options)
    assert caught.value.field == field


# limits


@given(
    per_minute=st.floats(1, 1000),
    asks=st.lists(st.tuples(st.floats(0, 30), st.floats(0, 50)), min_size=1, max_size=60),
)
def test_a_bucket_never_grants_more_than_its_rate_and_burst(per_minute, asks):
    now = 0.0
    bucket = Bucket(per_minute, clock=lambda: now)
    granted = []  # (when, units)
    for pause, units in asks:
        now += pause
        granted.append((now + bucket.take(units), units))
    for start, (began, _) in enumerate(granted):
        total = 0.0
        for when, units in granted[start + 1 :]:
            total += units
            assert total <= bucket.size + (when - began) * bucket.rate + 1e-6


def test_a_bucket_lets_a_burst_through_then_paces_and_takes_back():
    now = 0.0
    bucket = Bucket(600, clock=lambda: now)
    assert [bucket.take(1) for _ in range(60)] == [0.0] * 60
    assert bucket.take(1) == pytest.approx(0.1)
    bucket.give(1)
    assert bucket.take(2) == pytest.approx(0.2)
    now = 1000.0
    assert bucket.take(60) == 0.0


def test_an_overload_halves_the_pace_once_and_successes_raise_it():
    pace = Pace(8)
    for _ in range(8):
        pace.overloaded(0)  # eight requests that were in flight together
    assert (pace.width, pace.age) == (4, 1)
    for _ in range(4):
        pace.succeeded()
    assert pace.width == 5
    for age in range(1, 9):
        pace.overloaded(age)
    assert pace.width == 1
    for _ in range(1 + 2 + 3 + 4 + 5 + 6 + 7 + 50):
        pace.succeeded()
    assert pace.width == 8


def test_the_gate_keeps_its_width_and_its_order_also_when_some_are_cancelled():
    async def go():
        gate, most, order = Gate(Pace(2)), 0, []

        async def work(i):
            nonlocal most
            async with gate:
                most = max(most, gate.inside)
                await asyncio.sleep(0)
                order.append(i)

        tasks = [asyncio.create_task(work(i)) for i in range(20)]
        await asyncio.sleep(0)
        for i in (0, 3, 4, 19):  # one inside, the others waiting
            tasks[i].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [i for i in range(20) if i not in (0, 3, 4, 19)]
        assert (most, gate.inside) == (2, 0)

    asyncio.run(go())


def test_a_place_given_in_the_moment_of_cancelling_is_free_again():
    async def go():
        gate = Gate(Pace(1))
        await gate.__aenter__()
        waiting = asyncio.create_task(gate.__aenter__())
        await asyncio.sleep(0)
        await gate.__aexit__()  # the place is given to `waiting` ...
        waiting.cancel()  # ... which has not noticed yet
        await asyncio.gather(waiting, return_exceptions=True)
        assert gate.inside == 0
        await asyncio.wait_for(gate.__aenter__(), 5)

    asyncio.run(go())


def test_concurrency_and_limits_hold_for_the_endpoint():
    server = Faulty((200, {}, chat_answer("a", usage={"prompt_tokens": 1, "completion_tokens": 1})))
    with server.serving() as url:
        lm = quick(url, concurrency=2, requests_per_minute=6000, tokens_per_minute=6000)

        async def many():
            return await asyncio.gather(*(lm.complete("hi", max_tokens=10) for _ in range(20)))

        assert len(asyncio.run(many())) == 20 == len(server.bodies)
    assert lm._tokens.size - lm._tokens._level <= 20 * 2 + 1  # of 600; what was used is charged, not what was estimated


def test_secrets_are_redacted(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "plainword-like-key")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    text = f"key {KEY}, Bearer abcdefghijklmnop1234, http://me:pass@host/, plainword-like-key, abc, own-secret, a bearer token"
    shown = redact({"a": [text], "b": 1}, "own-secret")
    hidden = "[redacted]"
    assert shown == {"a": [f"key {hidden}, Bearer {hidden}, http://{hidden}@host/, {hidden}, abc, {hidden}, a bearer token"], "b": 1}
