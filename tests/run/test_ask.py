import asyncio
import json
import warnings

import pytest
from worker import Scripted, Worker

from keystep.errors import BadInput, BudgetSpent, ModelError, Undecided
from keystep.lm.base import Message, Sample
from keystep.lm.rotation import Rotation
from keystep.run import AheadBy, Budget, First, Flag, Majority, Mismatch, Run, Sampling, TooLong, Unsure
from keystep.run.ask import Asking, ask, plain
from keystep.run.budget import Meter


def decide(lm, rule, prompts=("question",), *, parse=plain, key=None, flags=(), sampling=None, budget=None, meter=None, leader=None):
    asking = Asking(lm, rule, tuple(flags), sampling or Sampling(), 0, budget or Budget())
    return asyncio.run(ask(asking, prompts, "0", meter or Meter(), parse=parse, key=key, leader=leader))


def number(text):
    if not text.isdigit():
        raise Flag("no number")
    return int(text)


# red flags


@pytest.mark.parametrize(
    ("flag", "bad", "reason"),
    [
        (TooLong(5), Sample("yes", tokens_out=6), "too long"),
        (TooLong(5), Sample("yes", tokens_out=2, finish="length"), "too long"),
        (Mismatch("^yes$"), Sample("yes, or no", tokens_out=1), "malformed"),
        (Unsure(-0.5), Sample("yes", tokens_out=4, logprob=-2.1), "unsure"),
        (lambda sample: "swears" if "damn" in sample.text else None, Sample("damn yes", tokens_out=1), "swears"),
    ],
)
def test_a_flagged_sample_is_thrown_away_and_drawn_again(flag, bad, reason):
    lm = Scripted(lambda request, index: bad if index == 1 else Sample("yes", tokens_out=4, logprob=-1.9))
    answer = decide(lm, AheadBy(3), flags=[flag])
    assert (answer.value, answer.counts, answer.samples, answer.flagged) == ("yes", {'"yes"': 3}, 4, 1)
    assert [(request.first, request.n) for request in lm.requests] == [(0, 3), (3, 1)]
    assert [(sample.index, key, flag) for sample, key, flag in answer.votes if flag] == [(1, None, reason)]


def test_edges_of_the_flags():
    assert TooLong(5)(Sample("yes", tokens_out=5)) is None
    assert Unsure(-0.5)(Sample("yes", tokens_out=4, logprob=-2.0)) is None
    assert Unsure(-0.5)(Sample("yes", tokens_out=4)) is None
    assert Unsure(-0.5)(Sample("", tokens_out=0, logprob=0.0)) is None
    for make in (lambda: TooLong(0), lambda: Mismatch("("), lambda: Unsure(0.1)):
        with pytest.raises(BadInput):
            make()


def test_a_malformed_answer_is_not_repaired():
    """The text holds the winning answer; it must not count for it."""
    lm = Scripted(["12 (surely)", "13", "12", "12", "12"])
    answer = decide(lm, AheadBy(2), parse=number)
    assert answer.counts == {"13": 1, "12": 3}
    assert (answer.value, answer.samples, answer.flagged) == (12, 5, 1)
    assert answer.votes[0][2] == "no number"


def test_a_parser_may_raise_what_int_raises():
    answer = decide(Scripted(["twelve", "12", "12"]), AheadBy(2), parse=int)
    assert (answer.value, answer.flagged) == (12, 1) and answer.votes[0][2].startswith("malformed: ")


def test_half_a_character_is_thrown_away():
    answer = decide(Scripted(["\ud800", "a"]), First())
    assert (answer.value, answer.flagged, answer.votes[0][2]) == ("a", 1, "not Unicode")


def test_no_text_is_no_answer():
    answer = decide(Scripted(["", " \n", " a "]), First())
    assert (answer.value, answer.flagged, answer.votes[0][2]) == ("a", 2, "empty")


def test_flags_are_not_asked_to_parse():
    parsed = []
    decide(Scripted(["long text", "a"]), First(), parse=lambda text: parsed.append(text) or text, flags=[TooLong(3)])
    assert parsed == ["a"]


# keys


def test_the_same_answer_written_differently_is_one_candidate():
    lm = Scripted(['{"a": 1, "b": [1, 2]}', '{"b":[1,2],"a":1}', ' { "a":1,\n"b":[1,2] }'])
    answer = decide(lm, AheadBy(3), parse=json.loads)
    assert answer.counts == {'{"a":1,"b":[1,2]}': 3}


def test_answers_that_agree_in_part_are_two_candidates():
    answer = decide(Scripted(["[1, 2]", "[1, 3]", "[1, 3]", "[1, 3]"]), AheadBy(2), parse=json.loads)
    assert answer.counts == {"[1,2]": 1, "[1,3]": 3}


def test_a_users_key_names_what_counts():
    answer = decide(Scripted(["Paris", "paris ", "PARIS"]), AheadBy(3), key=str.lower)
    assert answer.counts == {'"paris"': 3}
    assert (answer.value, answer.text, answer.json) == ("Paris", "Paris", '"Paris"')


def test_a_value_comes_as_the_journal_gives_it_back():
    answer = decide(Scripted(["x"]), First(), parse=lambda text: {1: (text, "y")})
    assert answer.value == {"1": ["x", "y"]}


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), object()])
def test_an_answer_has_to_be_json(value):
    with pytest.raises(BadInput, match="is not JSON"):
        decide(Scripted(["x"]), First(), parse=lambda text: value)


# how it is sampled


def test_the_first_sample_may_have_a_temperature_of_its_own():
    lm = Scripted(["a", "b", "a", "a"])
    decide(lm, AheadBy(3, cap=5), sampling=Sampling(temperature=0.1, first_temperature=0.0), parse=plain)
    drawn = [(request.first, request.n, request.temperature) for request in lm.requests]
    assert drawn == [(0, 1, 0.0), (1, 2, 0.1), (3, 2, 0.1)]


def test_paraphrases_take_turns_after_every_round_over_the_members():
    lm = Scripted(lambda request, index: str(index), members=2)
    with pytest.raises(Undecided):
        decide(lm, AheadBy(8, cap=8), prompts=("p", "q", "r"))
    asked = {index: request.prompt for request in lm.requests for index in range(request.first, request.first + request.n)}
    assert [asked[index] for index in range(8)] == ["p", "p", "q", "q", "r", "r", "p", "p"]


def test_a_request_carries_the_sampling_and_the_address():
    sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=9, stop=("\n",), prefix="A", schema={"type": "string"})
    lm = Scripted(["a"])
    decide(lm, First(), sampling=sampling)
    request = lm.requests[0]
    assert (request.key, request.seed, request.temperature, request.top_p) == ("0", 0, 0.7, 0.9)
    assert (request.max_tokens, request.stop, request.prefix, request.schema) == (9, ("\n",), "A", {"type": "string"})


def test_a_chat_is_one_prompt_and_a_list_is_several():
    lm = Scripted(["a"])
    chat = (Message("system", "be brief"), Message("user", "hello"))
    run = Run(lm, vote=AheadBy(2))
    run.ask_sync(chat)
    run.ask_sync(["one", "other"])
    assert [request.prompt for request in lm.requests] == [chat, "one", "other"]
    with pytest.raises(BadInput, match="at least one wording"):
        run.ask_sync([])
    run.close()


def test_several_models_take_turns():
    models = [Scripted(["x"]), Scripted(["y"]), Scripted(["y"])]
    answer = decide(Rotation(models), AheadBy(2))
    assert answer.value == "y"
    assert {sample.index: key for sample, key, _ in answer.votes} == dict(enumerate(['"x"', '"y"', '"y"', '"x"', '"y"', '"y"']))
    assert [model.drawn for model in models] == [2, 2, 2]


def test_options_of_one_ask():
    lm, other = Scripted(["a", "b", "b"]), Scripted(["c"])
    run = Run(lm, vote=First())
    assert run.ask_sync("q").value == "a"
    assert run.ask_sync("q", vote=AheadBy(2)).counts == {'"a"': 1, '"b"': 3}
    assert run.ask_sync("q", lm=other, temperature=0.3, flags=[TooLong(9)]).value == "c"
    assert other.requests[0].temperature == 0.3
    with pytest.raises(BadInput) as refused:
        run.ask_sync("q", temprature=0.3)
    assert refused.value.field == "temprature"
    run.close()


def test_votes_of_one_greedy_model_are_warned_of():
    with pytest.warns(UserWarning, match="temperature 0"):
        Run(Scripted(["a"]), sampling=Sampling(temperature=0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Run(Scripted(["a"], members=3), sampling=Sampling(temperature=0.0))
        Run(Scripted(["a"]), vote=First(), sampling=Sampling(temperature=0.0))


# rounds


def test_a_first_round_of_k_and_then_what_can_still_decide():
    lm = Scripted(["a", "b", "a", "b", "a", "b", "a"])
    answer = decide(lm, AheadBy(3))
    assert [request.n for request in lm.requests] == [3, 2, 2, 2]
    assert answer.counts == {'"a"': 6, '"b"': 3}


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_arrival_within_a_round_does_not_matter(reverse):
    lm = Scripted(["a", "b", "a", "a", "b", "a", "a"], rank=lambda index: 20 - index if reverse else index)
    answer = decide(lm, AheadBy(2))
    assert (answer.value, answer.samples, answer.counts) == ("a", 4, {'"a"': 3, '"b"': 1})


def test_late_samples_are_cancelled_when_majority_is_decided():
    lm = Scripted(["a"], hang=(3, 4))
    answer = decide(lm, Majority(5))
    assert (answer.value, answer.samples) == ("a", 3)
    assert sorted(lm.cancelled) == [3, 4]


def test_with_several_prompts_late_ones_are_cancelled_too():
    lm = Scripted(["a"], hang=(3, 4), members=1)
    answer = decide(lm, Majority(5), prompts=("p", "q"))
    assert (answer.value, answer.samples) == ("a", 3)
    assert sorted(lm.cancelled) == [3, 4]


def test_the_leader_is_told_after_an_undecided_round():
    told = []
    lm = Scripted(["a", "b", "a", "b", "a", "a", "a"])
    decide(lm, AheadBy(3), leader=lambda value, key: told.append((value, key)))
    assert told == [("a", '"a"'), ("a", '"a"')]


# no winner


def test_undecided_at_the_cap_tells_everything():
    lm = Scripted(["a", "b", "", "b", "a", "c"])
    with pytest.raises(Undecided, match="no winner after 5 samples") as raised:
        decide(lm, AheadBy(2, cap=5))
    ledger = raised.value.ledger
    assert (ledger.decided, ledger.samples, ledger.flagged, ledger.candidates) == (False, 5, 1, {'"a"': 2, '"b"': 2})
    assert [(vote.index, vote.text, vote.key, vote.flag) for vote in ledger.votes] == [
        (0, "a", '"a"', None), (1, "b", '"b"', None), (2, "", None, "empty"), (3, "b", '"b"', None), (4, "a", '"a"', None),
    ]  # fmt: skip
    assert lm.drawn == 5


def test_no_valid_answer_says_why():
    with pytest.raises(Undecided, match="none of 4 samples was a valid answer: no number, too long") as raised:
        decide(Scripted(["a", "bbbbbb"]), AheadBy(1, cap=4), parse=number, flags=[TooLong(3)])
    assert raised.value.ledger.candidates == {}
    assert len(raised.value.ledger.votes) == 4


def test_a_models_failure_ends_the_ask():
    def broken(request, index):
        if index == 2:
            raise ModelError("is gone", field="model")
        return "a"

    with pytest.raises(ModelError):
        decide(Scripted(broken), AheadBy(3))


# budgets


def test_a_budget_of_calls_is_kept_exactly():
    lm, meter = Scripted(lambda request, index: "ab"[index % 2]), Meter()
    with pytest.raises(BudgetSpent) as stopped:
        decide(lm, AheadBy(3), budget=Budget(calls=4), meter=meter)
    assert (stopped.value.field, meter.calls, lm.drawn) == ("budget.calls", 4, 4)


@pytest.mark.parametrize(("limit", "field"), [(Budget(tokens=12), "tokens"), (Budget(cost=0.5), "cost")])
def test_other_budgets_overrun_by_the_samples_in_flight_only(limit, field):
    lm = Scripted(lambda request, index: Sample("ab"[index % 2], tokens_out=5, cost=0.2))
    meter = Meter()
    with pytest.raises(BudgetSpent) as stopped:
        decide(lm, AheadBy(3), budget=limit, meter=meter)
    assert stopped.value.field == f"budget.{field}"
    assert meter.calls == 3  # the first round was under way when the limit was reached


def test_asks_beside_one_another_overrun_by_what_is_in_flight_only():
    lm = Scripted(["a"])
    run = Run(lm, vote=AheadBy(3), budget=Budget(calls=10))

    async def many():
        return await asyncio.gather(*(run.ask(f"q{n}") for n in range(8)), return_exceptions=True)

    results = asyncio.run(many())
    in_flight = 8 * 3
    assert run.meter.calls == lm.drawn <= 10 + in_flight
    with pytest.raises(BudgetSpent):
        run.ask_sync("one more")
    assert lm.drawn == run.meter.calls
    assert all(not isinstance(result, BaseException) or isinstance(result, BudgetSpent) for result in results)
    run.close()


def test_time_is_a_budget():
    meter = Meter(seconds_before=100.0)
    with pytest.raises(BudgetSpent) as stopped:
        decide(Scripted(["a"]), First(), budget=Budget(seconds=99), meter=meter)
    assert stopped.value.field == "budget.seconds"
    with pytest.raises(BadInput):
        Budget(calls=0)


# in a run


def test_the_same_asks_are_not_asked_again(tmp_path):
    lm = Scripted(["a", "b", "b", "b"])
    run = Run(lm, vote=AheadBy(2), journal=tmp_path / "a.db", id="r")
    first = [run.ask_sync("q"), run.ask_sync("p")]
    run.close()
    silent = Scripted(["never"])
    again = Run(silent, vote=AheadBy(2), journal=tmp_path / "a.db", id="r")
    second = [again.ask_sync("q"), again.ask_sync("p")]
    assert silent.drawn == 0
    assert [(a.value, a.samples, a.flagged) for a in first] == [(a.value, a.samples, a.flagged) for a in second]
    assert again.ask_sync("new").value == "never"
    again.close()


def test_a_persons_decision_is_taken(tmp_path):
    run = Run(Scripted(lambda request, index: str(index)), vote=AheadBy(2, cap=4), journal=tmp_path / "a.db", id="r")
    with pytest.raises(Undecided) as raised:
        run.ask_sync("q")
    waiting = run.journal.undecided("r")
    assert [row["step"] for row in waiting] == [raised.value.step]
    assert waiting[0]["ledger"]["candidates"] == {'"0"': 1, '"1"': 1, '"2"': 1, '"3"': 1}
    run.journal.decide("r", raised.value.step, "mine")
    run.close()
    silent = Scripted(["never"])
    again = Run(silent, vote=AheadBy(2, cap=4), journal=tmp_path / "a.db", id="r")
    answer = again.ask_sync("q")
    assert (answer.value, answer.samples, silent.drawn) == ("mine", 0, 0)
    again.close()


def test_a_sync_ask_inside_a_running_loop():
    async def notebook():
        run = Run(Scripted(["a"]), vote=AheadBy(2))
        value = run.ask_sync("q").value, run.ask_sync("p").value
        run.close()
        return value

    assert asyncio.run(notebook()) == ("a", "a")


def test_asks_beside_one_another_are_numbered_in_the_order_of_the_calls():
    run = Run(Worker(), vote=First())

    async def both():
        return await asyncio.gather(run.ask("Running sum: 1\nNext word: a\na = 2"), run.ask("Running sum: 5\nNext word: b\nb = 3"))

    asyncio.run(both())
    assert run.asking.lm.asked == [("/0", 0), ("/1", 0)]
    run.close()
