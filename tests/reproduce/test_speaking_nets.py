"""The nets that continue texts, hardly trained: they are taught what the solvers send; a text does not depend on its company."""

import asyncio
from random import Random

import numpy as np
import pytest
from faulty_server import serving

from keystep.errors import Refused
from keystep.lm.base import Message
from keystep.lm.endpoint import Endpoint
from keystep.lm.server import app as server
from keystep.reproduce import _count_books as books
from keystep.reproduce import _word_problems as box
from keystep.reproduce import auto_cot, plan_and_solve
from keystep.reproduce._nets import Net, trained
from keystep.reproduce._speaking_nets import Speaker, Words
from keystep.run import First
from keystep.solve.worked import equations, missing, sections


@pytest.fixture
def speaker(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = plan_and_solve.WORDS
    net = Net("a test", words.count, 200, 3, 0, width=16, layers=1, heads=1)
    return Speaker("s", trained(net, plan_and_solve.batch), words, 12, [box.ANSWER])


@pytest.mark.parametrize("style", box.STYLES)
def test_solutions_are_right_and_as_complete_as_their_style(style):
    random, left_out = Random(1), []
    for _ in range(100):
        problem = box.drawn(random, random.choice(box.STEPS))
        text = box.solution(problem, style)
        assert all(equation.holds for equation in equations(text)) and text.rstrip(".").split()[-1] == str(problem.answer)
        assert plan_and_solve.WORDS.say(plan_and_solve.WORDS.read(text)) == text
        found = sections(text)
        assert (found["plan"] is not None) == (style in ("plan", "complete"))
        assert (found["variables"] is not None) == (style in ("variables", "complete"))
        left_out.append(missing(text, [float(value) for value in problem.values[1:-1]]))
    share = float(np.mean(left_out))
    assert share == 0 if style == "complete" else share > 0.02


def test_the_nets_are_taught_what_the_solvers_send(speaker):
    problem = box.drawn(Random(2), 3)
    for style, solver in box.SOLVERS.items():
        (prompt, _), (reasoning, _), (answer, _) = box.rows(problem, "complete", style)
        assert prompt == solver.first_prompt(problem.question, solver.wording())
        written = reasoning.removesuffix(box.ANSWER)
        assert solver.second_prompt(problem.question, solver.wording(), written.strip(), " ")[0] == prompt + reasoning
        assert speaker.words.read(prompt + reasoning + answer)
    asked = books.drawn(Random(3), 6, True)
    made = auto_cot.SOLVER
    demo = made.demo(asked.text, asked.chain.strip(), str(asked.answer))
    entry = f"Q: {asked.text}{books.THINK}{asked.chain} The answer is {asked.answer}.\n\n"
    assert made.few_shot_prompt(asked.text, [demo]) == f"{entry}Q: {asked.text}{books.THINK}"
    first = made.first_prompt(asked.text, made.prompt("trigger.txt"))
    assert first == f"Q: {asked.text}{books.THINK}"
    second = made.second_prompt(asked.text, made.prompt("trigger.txt"), asked.chain.strip(), "\n")[0]
    assert second == f"{first}{asked.chain}{books.ANSWER}"


def test_books_count_one_way():
    random = Random(4)
    for _ in range(50):
        text = "".join(part for part, _ in books.book(random, 9))
        assert auto_cot.WORDS.say(auto_cot.WORDS.read(text)) == text and text.count("The answer is") == 9
        assert all(equation.holds for equation in equations(text))


def test_a_text_does_not_depend_on_its_company(speaker):
    random = Random(5)
    prompts = [str(box.SOLVERS["terse"].first_prompt(box.drawn(random, n % 5 + 2).question, "Let's think step by step.")) for n in range(6)]
    for heat in (0.0, 1.0):
        apart = [speaker.complete_sync(prompt, temperature=heat, key=prompt)[0].text for prompt in prompts]

        async def all_of(heat=heat):
            return await asyncio.gather(*(speaker.complete(prompt, temperature=heat, key=prompt) for prompt in prompts))

        assert [found[0].text for found in asyncio.run(all_of())] == apart
    samples = speaker.complete_sync(prompts[0], temperature=1.0, n=5)
    assert [each.index for each in samples] == list(range(5)) and sum(each.tokens_in for each in samples) == len(
        speaker.words.read(prompts[0])
    )
    assert samples[3].text == speaker.complete_sync(prompts[0], temperature=1.0, first=3)[0].text


def test_what_they_do_not_know(speaker):
    for prompt in ("Hello", (Message("user", "Q: A box has 3."),)):
        with pytest.raises(Refused):
            speaker.complete_sync(prompt)
    assert Words(["ab", "a", "b"]).read("abba") == [0, 2, 1]


def test_a_solver_runs_on_them(speaker):
    asked = [box.drawn(Random(steps), steps) for steps in box.STEPS]
    found, took = plan_and_solve.solved(speaker, box.SOLVERS["terse"], asked, First(cap=3), 0.0, 1)
    assert len(found) == 5 and took["samples"] >= 5
    assert plan_and_solve.about(box.SOLVERS["terse"], asked, found, took)["accuracy"] <= 1


def test_they_can_be_served(speaker):
    """The same texts over HTTP: the solver need not know where the net is."""
    asked = [box.drawn(Random(steps), steps) for steps in box.STEPS]
    apart, _ = plan_and_solve.solved(speaker, box.SOLVERS["complete"], asked, First(cap=3), 0.0, 1)
    with serving(server({"m": speaker})) as url:
        endpoint = Endpoint("m", f"{url}/v1", "none", api="completions", timeout=60)
        served, _ = plan_and_solve.solved(endpoint, box.SOLVERS["complete"], asked, First(cap=3), 0.0, 1)
    assert served == apart
