"""keystep models in real DSPy programs, and the voting proxy as LiteLLM, which DSPy brings, reads it."""

from __future__ import annotations

import asyncio

import dspy
import litellm
import pytest
from faulty_server import Echo, Faulty, chat_answer, serving
from worker import Scripted, Worker, written

import keystep as ks
from keystep.lm.base import Sample, ToolCall
from keystep.lm.dspy import as_dspy
from keystep.lm.server import app
from keystep.run import AheadBy
from keystep.run.builtin import builtin
from keystep.run.proxy import app as proxy
from keystep.run.voted import Voted

ANSWER = "[[ ## reasoning ## ]]\nBecause.\n\n[[ ## answer ## ]]\n{}\n\n[[ ## completed ## ]]"


def answering(*words, **options):
    model = Scripted([ANSWER.format(word) for word in words])
    return as_dspy(model, **options), model


def test_a_program_runs_on_a_model():
    lm, model = answering("blue")
    with dspy.context(lm=lm):
        found = dspy.ChainOfThought("question -> answer")(question="What colour is the sky?")
    assert (found.answer, found.reasoning) == ("blue", "Because.")
    asked = model.requests[0]
    assert [message.role for message in asked.prompt] == ["system", "user"] and "What colour is the sky?" in asked.prompt[1].content
    assert lm.history[-1]["usage"]["completion_tokens"] == len(ANSWER.format("blue"))


def test_a_program_runs_on_a_server():
    model = Scripted(lambda request, index: ANSWER.format("7" if index < 2 else "8"))
    with serving(app({"m": model})) as address:
        lm = as_dspy(ks.lm(f"{address}/v1#m"), temperature=0.5, max_tokens=99)
        with dspy.context(lm=lm):
            assert dspy.Predict("question -> answer: int")(question="three and four?").answer == 7
    assert (model.requests[0].temperature, model.requests[0].max_tokens) == (0.5, 99)


def test_a_voted_model_votes_on_every_call_of_a_program():
    model = Scripted([ANSWER.format(word) for word in ("green", "blue", "blue", "green", "blue", "blue", "blue")])
    lm = as_dspy(Voted(model, vote=AheadBy(3), key=r"regex:answer ## \]\]\n(\w+)"))
    with dspy.context(lm=lm):
        assert dspy.Predict("question -> answer")(question="colour?").answer == "blue"
    assert model.drawn == 7


def test_a_plain_prompt_is_one_and_asyncio_works():
    hanoi = builtin("hanoi", {"disks": 4})
    prompts = [hanoi.prompt(state) for state, _ in hanoi.truth()]
    lm = as_dspy(Voted(Worker([0.7, 0.1])), seed=1)
    assert [lm(prompt) for prompt in prompts] == [[written(prompt, 0)] for prompt in prompts]
    assert asyncio.run(lm.acall(prompts[0])) == [written(prompts[0], 0)]


def test_a_seed_makes_a_program_repeat_itself():
    def said(seed):
        lm = as_dspy(Echo(), seed=seed)
        return [lm("hi")[0] for _ in range(3)]

    assert said(5) == said(5) == [f"hi//5/dspy/{i}" for i in range(3)]
    assert said(None) != said(None)
    assert as_dspy(Echo(), seed=5)("hi", n=2) == ["hi//5/dspy/0", "hi//5/dspy/1"]


def test_structured_output_where_the_model_can():
    def answer(body):
        assert body["response_format"]["json_schema"]["schema"]["properties"].keys() >= {"answer"}
        return 200, {}, chat_answer('{"answer": 3}')

    with Faulty(answer).serving() as address:
        lm = as_dspy(ks.lm(f"{address}#m", retries=0), schemas=True)
        with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
            assert dspy.Predict("question -> answer: int")(question="one and two?").answer == 3


def test_native_tools():
    def add(a: int, b: int) -> int:
        """The sum."""
        return a + b

    model = Scripted(lambda request, index: Sample("", finish="tool_calls", tool_calls=(ToolCall("c", "add", '{"a": 1, "b": 2}'),)))

    class Call(dspy.Signature):
        """Call a tool."""

        question: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        outputs: dspy.ToolCalls = dspy.OutputField()

    with dspy.context(lm=as_dspy(model, tools=True), adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        found = dspy.Predict(Call)(question="one and two?", tools=[dspy.Tool(add)])
    assert [(call.name, call.args) for call in found.outputs.tool_calls] == [("add", {"a": 1, "b": 2})]
    assert model.requests[0].tools[0]["function"]["name"] == "add"


def test_errors_are_dspys_own_and_are_not_tried_again():
    from dspy.utils.exceptions import LMInvalidRequestError, LMProviderError

    echo = Echo()
    with pytest.raises(LMInvalidRequestError, match="not made for this"):
        as_dspy(echo, num_retries=3)("refuse")
    split = Scripted(["a", "b"])
    with pytest.raises(LMProviderError, match="no winner"):
        as_dspy(Voted(split, vote=AheadBy(3, cap=4)), num_retries=3)("hi")
    assert len(echo.asked) == 1 and split.drawn == 4
    with pytest.raises(dspy.LMError, match="top_k"):
        as_dspy(echo)(dspy.lm15.Request("keystep:echo", dspy.lm15.Message.user("hi"), config=dspy.lm15.Config(top_k=3)))


def test_dspys_own_client_reads_the_proxy():
    model = Scripted([ANSWER.format("blue")])
    with serving(proxy({"m": Voted(model)})) as address:
        lm = dspy.LM("openai/m", api_base=f"{address}/v1", api_key="none", cache=False)
        with dspy.context(lm=lm):
            assert dspy.Predict("question -> answer")(question="colour?").answer == "blue"
    assert model.drawn == 3


def test_litellm_reads_the_proxy():
    model = Scripted(["a", "b", "a", "a", "a"])
    with serving(proxy({"m": Voted(model)})) as address:
        asked = {"model": "openai/m", "api_base": f"{address}/v1", "api_key": "none", "messages": [{"role": "user", "content": "hi"}]}
        whole = litellm.completion(**asked)
        assert (whole.choices[0].message.content, whole.usage.completion_tokens) == ("a", 5)
        chunks = list(litellm.completion(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "a"
