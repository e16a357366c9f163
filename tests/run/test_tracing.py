"""Spans of runs, steps and calls: in memory by the SDK's exporter, and once over real OTLP to a local receiver."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from faulty_server import Faulty, chat_answer
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from worker import Scripted, Worker

from keystep.errors import BudgetSpent, ModelError, Undecided
from keystep.lm.base import Message, Request, Sample, ToolCall
from keystep.lm.endpoint import Endpoint
from keystep.plan import Plan, Step
from keystep.run import AheadBy, Budget, Majority, Run
from keystep.run.builtin import builtin
from keystep.run.many import Many
from keystep.run.skills import PromptSkill, ToolSkill
from keystep.run.tracing import Tracing
from keystep.run.voted import Voted
from keystep.skill import SkillLibrary

ERRING = [0.7, 0.1, 0.1]
SECRET = "sk-abcdefghijklmnop"


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    exporter.tracer = provider.get_tracer("test")
    yield exporter
    provider.shutdown()


def named(spans, start):
    return [span for span in spans.get_finished_spans() if span.name.startswith(start)]


def children(spans, parent):
    return [span for span in spans.get_finished_spans() if span.parent and span.parent.span_id == parent.context.span_id]


def everything(spans):
    """All that was written, as one text."""
    return json.dumps([json.loads(span.to_json()) for span in spans.get_finished_spans()])


def test_a_run_is_a_tree_of_spans_whose_tokens_add_up(spans):
    run = Run(Worker(ERRING), seed=1, id="r1", tracing=Tracing(spans.tracer))
    outcome = run.execute_sync(builtin("hanoi", {"disks": 4}))
    (root,) = named(spans, "invoke_workflow")
    assert root.name == "invoke_workflow hanoi" and root.parent is None
    assert root.attributes["gen_ai.operation.name"] == "invoke_workflow" and root.attributes["keystep.run.id"] == "r1"
    assert (root.attributes["keystep.run.status"], root.attributes["keystep.run.steps"]) == ("finished", 15)
    votes = children(spans, root)
    assert [span.attributes["keystep.step"] for span in votes] == [f"0/{i}" for i in range(15)] and {span.name for span in votes} == {
        "vote"
    }
    assert sum(span.attributes["keystep.vote.samples"] for span in votes) == outcome.samples
    assert sum(span.attributes["keystep.vote.flagged"] for span in votes) == outcome.flagged > 0
    calls = [call for vote in votes for call in children(spans, vote)]
    assert len(calls) + len(votes) + 1 == len(spans.get_finished_spans())
    assert sum(call.attributes["gen_ai.usage.output_tokens"] for call in calls) == outcome.tokens_out
    assert sum(call.attributes["gen_ai.usage.input_tokens"] for call in calls) == outcome.tokens_in
    assert {span.context.trace_id for span in spans.get_finished_spans()} == {root.context.trace_id}


def test_a_call_has_the_attributes_of_the_conventions(spans):
    run = Run(Scripted(["a"]), vote=AheadBy(2), seed=7, tracing=Tracing(spans.tracer))
    run.ask_sync("hi", temperature=0.5, top_p=0.9, max_tokens=8, stop=("x",), schema={"type": "string"})
    run.close()
    (call,) = named(spans, "text_completion scripted")
    assert dict(call.attributes) == {
        "gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "keystep", "gen_ai.request.model": "scripted",
        "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 0.9, "gen_ai.request.max_tokens": 8, "gen_ai.request.choice.count": 2,
        "gen_ai.request.seed": 7, "gen_ai.request.stop_sequences": ("x",), "gen_ai.output.type": "json",
        "gen_ai.response.finish_reasons": ("stop", "stop"), "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 2,
    }  # fmt: skip
    assert call.kind == SpanKind.INTERNAL and call.status.status_code == StatusCode.UNSET
    (root,) = named(spans, "invoke_workflow")
    assert root.attributes["keystep.run.status"] == "stopped" and root.status.status_code == StatusCode.UNSET


def test_a_call_of_a_server_says_where_it_is(spans):
    answer = chat_answer("a") | {"model": "m-1", "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    with Faulty((200, {}, answer)).serving() as address:
        run = Run(Endpoint("m", address), vote=AheadBy(1), tracing=Tracing(spans.tracer))
        run.ask_sync("hi")
        run.close()
    (call,) = named(spans, "chat m")
    about = call.attributes
    assert (about["gen_ai.provider.name"], about["gen_ai.response.model"], about["server.address"]) == ("openai", "m-1", "127.0.0.1")
    assert str(about["server.port"]) in address and call.kind == SpanKind.CLIENT


def test_a_span_of_ones_own_inside_the_model_stands_below_the_call(spans):
    def answer(request, index):
        with spans.tracer.start_as_current_span("http"):
            return "a"

    run = Run(Scripted(answer), vote=AheadBy(1), tracing=Tracing(spans.tracer))
    with spans.tracer.start_as_current_span("mine"):
        run.ask_sync("hi")
        assert trace.get_current_span().name == "mine"
        run.close()
    (mine,), (call,) = named(spans, "mine"), named(spans, "text_completion")
    assert [span.name for span in children(spans, mine)] == ["invoke_workflow ask"]
    assert [span.name for span in children(spans, call)] == ["http"]


def test_no_text_leaves_unless_it_is_asked_for(spans):
    texts = ["red", f"{{{SECRET}", "red", "blue", "red", "red"]
    options = {"vote": AheadBy(3), "seed": 1}

    def parse(text):
        if "{" in text:
            raise ValueError(f"cannot read {text}")
        return text

    run = Run(Scripted(texts), **options, tracing=Tracing(spans.tracer))
    run.ask_sync(f"what colour? {SECRET}", parse=parse)
    run.close()
    silent = everything(spans)
    assert not any(word in silent for word in ("red", "blue", "colour", SECRET))
    (vote,) = named(spans, "vote")
    assert [(event.name, dict(event.attributes)) for event in vote.events] == [
        ("keystep.candidate", {"keystep.candidate.rank": 0, "keystep.candidate.votes": 4}),
        ("keystep.candidate", {"keystep.candidate.rank": 1, "keystep.candidate.votes": 1}),
        ("keystep.flag", {"keystep.sample": 1, "keystep.flag": "malformed"}),
    ]
    assert vote.attributes["keystep.vote.decided"] and vote.attributes["keystep.vote.votes"] == 4
    spans.clear()

    run = Run(Scripted(texts), **options, tracing=Tracing(spans.tracer, content=True))
    run.ask_sync(f"what colour? {SECRET}", parse=parse)
    run.close()
    told = everything(spans)
    assert "what colour? [redacted]" in told and "cannot read" in told and SECRET not in told
    call = named(spans, "text_completion")[0]
    assert json.loads(call.attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "what colour? [redacted]"}]}
    ]
    said = json.loads(call.attributes["gen_ai.output.messages"])
    assert said[0] == {"role": "assistant", "parts": [{"type": "text", "content": "red"}], "finish_reason": "stop"}


def test_messages_and_tool_calls_are_written_by_the_conventions(spans):
    call = ToolCall("c1", "add", '{"a": 1}')
    prompt = (
        Message("user", [{"type": "text", "text": "see"}]),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "2", tool_call_id="c1"),
    )
    model = Scripted(lambda request, index: Sample("yes", finish="tool_calls", tool_calls=(call,)))
    run = Run(model, vote=AheadBy(1), tracing=Tracing(spans.tracer, content=True))
    run.ask_sync(prompt)
    run.close()
    (span,) = named(spans, "chat scripted")
    put, got = (json.loads(span.attributes[f"gen_ai.{way}.messages"]) for way in ("input", "output"))
    assert [(message["role"], [part["type"] for part in message["parts"]]) for message in put] == [
        ("user", ["text"]),
        ("assistant", ["text", "tool_call"]),
        ("tool", ["tool_call_response"]),
    ]
    assert got[0]["parts"][1] == {"type": "tool_call", "id": "c1", "name": "add", "arguments": '{"a": 1}'}
    assert got[0]["finish_reason"] == "tool_call"


def test_what_goes_wrong_is_an_error_without_its_words(spans):
    run = Run(Scripted(["red", "blue"]), vote=AheadBy(3, cap=3), tracing=Tracing(spans.tracer))
    procedure = builtin("hanoi", {"disks": 3})
    procedure.parse = lambda text, state: text
    with pytest.raises(Undecided):
        run.execute_sync(procedure)
    (vote,), (root,) = named(spans, "vote"), named(spans, "invoke_workflow")
    for span in (vote, root):
        assert (span.status.status_code, span.status.description, span.attributes["error.type"]) == (StatusCode.ERROR, None, "Undecided")
    assert vote.attributes["keystep.vote.decided"] is False and vote.attributes["keystep.vote.samples"] == 3
    assert root.attributes["keystep.run.status"] == "stopped" and "red" not in everything(spans)
    spans.clear()

    run = Run(Worker(), budget=Budget(calls=4), tracing=Tracing(spans.tracer))
    with pytest.raises(BudgetSpent):
        run.execute_sync(builtin("hanoi", {"disks": 3}))
    assert named(spans, "invoke_workflow")[0].attributes["error.type"] == "BudgetSpent"
    spans.clear()

    with Faulty("reset").serving() as address:
        run = Run(Endpoint("m", address, retries=0), vote=AheadBy(1), tracing=Tracing(spans.tracer))
        with pytest.raises(ModelError):
            run.ask_sync("hi")
        run.close()
    assert [span.attributes["error.type"] for span in named(spans, "chat") + named(spans, "vote")] == ["ModelError"] * 2


def test_calls_that_are_not_needed_any_more_are_no_errors(spans):
    run = Run(Scripted(["a"], hang=[4]), vote=Majority(5), tracing=Tracing(spans.tracer))
    run.ask_sync("hi")  # decided by three
    run.ask_sync("hi", vote=AheadBy(2))
    run.close()
    assert all(span.status.status_code == StatusCode.UNSET for span in spans.get_finished_spans())
    assert ["keystep.cancelled" in span.attributes for span in named(spans, "text_completion")] == [True, False]


def test_a_step_begun_ahead_is_no_part_of_the_one_before(spans):
    run = Run(Worker(ERRING, pause=True), seed=3, speculate=True, tracing=Tracing(spans.tracer))
    assert run.execute_sync(builtin("hanoi", {"disks": 4})).correct
    (root,) = named(spans, "invoke_workflow")
    assert {span.parent.span_id for span in named(spans, "vote")} == {root.context.span_id}
    assert len(named(spans, "vote")) >= 15


def test_the_steps_of_a_plan_hold_what_is_asked_in_them(spans):
    plan = Plan(
        steps=[
            Step(id="a", skill="colour", inputs={"thing": "sky"}),
            Step(id="b", skill="shout", needs=["a"], inputs={"text": "x"}),
        ]
    )
    library = SkillLibrary([PromptSkill("colour", "What colour is {{ inputs.thing }}?"), ToolSkill("shout", lambda text: text.upper())])
    run = Run(Scripted(["blue"]), vote=AheadBy(1), tracing=Tracing(spans.tracer))
    run.execute_sync(plan, library)
    (root,) = named(spans, "invoke_workflow plan")
    steps = children(spans, root)
    assert sorted((span.name, span.attributes["keystep.step"]) for span in steps) == [("step colour", "0/a"), ("step shout", "0/b")]
    (asked,) = [span for span in steps if span.name == "step colour"]
    assert [span.name for span in children(spans, asked)] == ["vote"]


def test_interleaved_rows_stand_below_their_run(spans):
    run = Run(Worker(ERRING, pause=True), tracing=Tracing(spans.tracer))
    many = Many(lambda row: builtin("hanoi", {"disks": row["disks"]}), [{"disks": 3}, {"disks": 4}])
    assert many.execute_sync(run).rows.finished == 2
    (root,) = named(spans, "invoke_workflow")
    assert len(children(spans, root)) == 7 + 15


def test_a_voted_model_makes_a_tree_per_request(spans):
    voted = Voted(Scripted(["a"]), tracing=Tracing(spans.tracer))
    voted.complete_sync("hi", n=2)
    voted.complete_sync("hi")
    roots = named(spans, "invoke_workflow")
    assert [len(children(spans, root)) for root in roots] == [2, 1]
    assert [root.attributes["keystep.run.samples"] for root in roots] == [6, 3]
    with pytest.raises(Undecided):
        Voted(Scripted(["a", "b"]), vote=AheadBy(3, cap=3), tracing=Tracing(spans.tracer)).complete_sync("hi")
    assert named(spans, "invoke_workflow")[-1].attributes["error.type"] == "Undecided"


def test_results_do_not_depend_on_spans_or_their_sampling():
    def outcome(tracing):
        run = Run(Worker(ERRING), seed=5, id="same", tracing=tracing)
        return run.execute_sync(builtin("hanoi", {"disks": 4})).model_dump(exclude={"seconds"})

    unsampled = TracerProvider(sampler=ALWAYS_OFF).get_tracer("test")
    assert outcome(None) == outcome(Tracing(unsampled))


def test_a_traced_run_is_resumed_by_an_untraced_one(spans, tmp_path):
    work = builtin("hanoi", {"disks": 3})
    run = Run(Worker(ERRING), journal=tmp_path / "runs.db", id="r", budget=Budget(calls=10), tracing=Tracing(spans.tracer))
    with pytest.raises(BudgetSpent):
        run.execute_sync(work)
    run.close()
    run = Run(Worker(ERRING), journal=tmp_path / "runs.db", id="r")
    assert run.execute_sync(work).correct
    run.close()


def test_nothing_of_opentelemetry_is_imported_where_it_is_off():
    code = (
        "import sys, keystep as ks; from keystep.run.builtin import builtin; import keystep.cli\n"
        "ks.Run(ks.lm('embedded')).execute_sync(builtin('hanoi', {'disks': 3}))\n"
        "import keystep.run.proxy\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("library", "module"), [("opentelemetry", "keystep.run.tracing"), ("dspy", "keystep.lm.dspy")])
def test_a_missing_extra_says_how_to_install_it(library, module):
    code = f"import sys; sys.modules['{library}'] = None; import {module}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    extra = {"opentelemetry": "otel", "dspy": "dspy"}[library]
    assert result.returncode == 1 and f"MissingExtra: {'tracing' if extra == 'otel' else 'as_dspy'} needs" in result.stderr
    assert f"pip install 'keystep[{extra}]'" in result.stderr


# Over the wire.


class Receiver:
    """Takes OTLP over HTTP and keeps the spans."""

    def __init__(self):
        receiver = self
        self.spans, self.resources, self.paths = [], [], []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.paths.append(self.path)
                for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                    receiver.resources.append({item.key: item.value.string_value for item in each.resource.attributes})
                    receiver.spans += [span for scope in each.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self):
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


def keystep(folder, environment, *arguments):
    import os

    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", "from keystep.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=120)


def test_the_command_line_sends_spans_by_otlp(tmp_path):
    with Receiver() as receiver:
        where = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.address}
        result = keystep(tmp_path, where, "run", "hanoi", "--set", "disks=3", "--json", "--otel", "--budget-calls", "9")
        assert result.returncode == 3, result.stderr
        assert keystep(tmp_path, where, "resume", "--budget-calls", "1000", "--json", "--otel", "--otel-content").returncode == 0
        assert set(receiver.paths) == {"/v1/traces"} and receiver.resources[0]["service.name"] == "keystep"
        names = [span.name for span in receiver.spans]
        assert names.count("invoke_workflow hanoi") == 2 and names.count("vote") == 7 + 1
        texts = [item.value.string_value for span in receiver.spans for item in span.attributes if item.key == "gen_ai.input.messages"]
        assert texts and all("Tower of Hanoi" in text for text in texts)
        before = len(receiver.spans)
        assert keystep(tmp_path, where, "run", "hanoi", "--set", "disks=3", "--json").returncode == 0
        assert len(receiver.spans) == before  # the variable alone turns nothing on


def test_a_collector_that_is_not_there_stops_nothing(tmp_path):
    where = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    result = keystep(tmp_path, where, "run", "hanoi", "--set", "disks=3", "--json", "--otel")
    assert result.returncode == 0 and json.loads(result.stdout)["correct"] is True


def test_content_without_spans_is_refused(tmp_path):
    result = keystep(tmp_path, {}, "run", "hanoi", "--set", "disks=3", "--otel-content")
    assert result.returncode == 2 and "--otel-content" in result.stderr and not list(tmp_path.iterdir())


def test_huge_seeds_do_not_break_the_export(spans):
    Voted(Scripted(["a"]), tracing=Tracing(spans.tracer)).complete_sync("hi", seed=10**40)
    run = Run(Scripted(["a"]), seed=10**40, tracing=Tracing(spans.tracer))
    run.ask_sync("hi")
    run.close()
    assert all(abs(span.attributes.get("gen_ai.request.seed", 0)) < 2**63 for span in named(spans, "text"))
    assert Request("hi").seed == 0
