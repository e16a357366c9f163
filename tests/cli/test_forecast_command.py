"""`keystep forecast`, `keystep run --forecast`, and the forecast beside the outcome."""

from __future__ import annotations

import json

import pytest
from worker import Scripted, Worker

from keystep.cli.forecast import PER_STEP, SAMPLE, TARGET
from keystep.run import forecast as engine
from keystep.run.builtin import builtin

LEDGER = ("ledger", "--set", "steps=60", "--set", "words=5")
KEYS = [
    *("procedure", "model", "truth", "steps", "steps_from", "target", "confidence", "seed", "sampled_steps", "samples", "valid", "right"),
    *("p", "v", "least_k", "k", "cap", "success", "calls", "tokens_in", "tokens_out", "cost", "seconds", "members", "hard_steps"),
    *("steps_per_call", "best_steps_per_call", "spent", "notes"),
]


def test_json_is_one_object_with_every_figure_and_its_interval(keystep, use):
    use(Worker([0.8, 0.1]))
    result = keystep("forecast", *LEDGER, "--json", "--seed", "3")
    assert result.exit_code == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    assert list(found) == KEYS
    for name in ("p", "v", "success", "calls", "tokens_in", "tokens_out", "cost", "seconds"):
        assert list(found[name]) == ["value", "low", "high"] and found[name]["low"] <= found[name]["value"] <= found[name]["high"], name
    assert (found["truth"], found["steps"], found["sampled_steps"], found["samples"], found["seed"]) == ("procedure", 60, 60, 240, 3)


def test_people_get_a_table_and_the_flag(keystep, use):
    use(Worker([0.8, 0.1]))
    shown = keystep("forecast", *LEDGER).stdout
    found = json.loads(keystep("forecast", *LEDGER, "--json").stdout)
    assert "forecast: ledger on worker, 60 steps" in shown
    assert "240 samples of 60 steps, truth by the procedure's own answers" in shown
    assert f"whole run right at k = {found['k']}" in shown and f"{found['calls']['value']:,.0f}" in shown
    assert f"--ahead-by {found['k']} is the least that meets 0.999 for the whole run" in shown and "cost" not in shown


def test_hard_steps_and_what_to_do_are_shown(keystep, use):
    use(Worker([0.95, 0.05], wrong_at=["forecast/4", "forecast/4/again"]))
    result = keystep("forecast", *LEDGER)
    assert result.exit_code == 0
    assert "hard steps" in result.stdout and "Systematic errors at steps 4: wrong more often than right" in result.stdout


def test_a_weak_model_is_refused(keystep, use):
    use(Worker([0.4, 0.6]))
    for command in (("forecast", *LEDGER), ("run", *LEDGER, "--forecast")):
        result = keystep(*command)
        assert result.exit_code == 2 and result.stdout == ""
        assert "1/2 or less" in result.stderr and "better model" in result.stderr
    assert "no runs yet" in keystep("runs").stdout


def test_labels_and_a_reference(keystep, use, here):
    labels = [json.dumps({"state": state, "answer": answer}) for state, answer in builtin("ledger", {"steps": 60, "words": 5}).truth()]
    (here / "t.jsonl").write_text("\n".join(labels))
    use(Worker([0.9, 0.1]))
    assert json.loads(keystep("forecast", *LEDGER, "--truth", "t.jsonl", "--json").stdout)["truth"] == "labels"
    assert json.loads(keystep("forecast", *LEDGER, "--reference", "other", "--json").stdout)["truth"] == "reference"
    both = keystep("forecast", *LEDGER, "--reference", "other", "--truth", "t.jsonl")
    assert both.exit_code == 2 and "exclude each other" in both.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--truth", "none.jsonl"), "--truth: cannot be read"),
        (("--target", "1"), "target: is a probability"),
        (("--target", "many"), "'many' is not a number"),
        (("--sample", "0"), "sample: must be at least 1"),
        (("--temperature", "0"), "temperature: at 0"),
        (("--set", "discs=3"), "is not a setting of ledger"),
        (("--reference", "http://me:secret@host/v1#m"), "--reference: has a secret in its address"),
    ],
)
@pytest.mark.filterwarnings("ignore:at temperature 0")
def test_bad_input(keystep, use, arguments, message):
    use(Worker())
    result = keystep("forecast", *LEDGER, *arguments)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()) and "secret@" not in result.stderr


def test_the_defaults_of_help_are_those_of_the_engine():
    assert (TARGET, SAMPLE, PER_STEP) == (engine.TARGET, engine.SAMPLE, engine.PER_STEP)


# Before a run.


def test_a_run_takes_the_forecasts_k_and_keeps_it_beside_the_outcome(keystep, use):
    use(Worker([0.7, 0.1]))
    result = keystep("run", *LEDGER, "--forecast", "--json", "--seed", "4")
    assert result.exit_code == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    assert found["correct"] and found["k"] == found["forecast"]["k"] == found["forecast"]["least_k"] > 3
    assert list(found["forecast"]) == KEYS
    assert found["samples"] >= 60 * found["k"]
    shown = json.loads(keystep("show", found["run_id"], "--json").stdout)
    assert shown["spec"]["forecast"] == found["forecast"] and shown["spec"]["ahead_by"] == found["k"]
    assert f"k={found['k']}" in shown["identity"]["vote"]
    text = keystep("show", found["run_id"]).stdout
    assert "forecast beside outcome" in text and f"{found['samples']:,}" in text


def test_people_see_the_forecast_before_and_beside(keystep, use):
    use(Worker([0.9, 0.05]))
    shown = keystep("run", *LEDGER, "--forecast").stdout
    assert shown.index("forecast: ledger") < shown.index("60 steps, correct") < shown.index("forecast beside outcome")
    assert "forecast beside outcome" not in keystep("run", *LEDGER).stdout


def test_a_stopped_run_goes_on_with_its_forecast(keystep, use, here):
    form = {"name": "p", "state": {"n": 0}, "prompt": "{{ n }}", "answer": {"regex": "[0-9]+", "type": "int"}, "max_steps": 200}
    more = {"update": {"n": "answer"}, "until": "step >= 200", "check": {"step": "answer == n + 1"}}
    (here / "p.yaml").write_text(json.dumps({**form, **more}))
    lm = use(Scripted(lambda request, index: "9999" if request.key == "0/150" and lm.split and index % 2 else str(int(request.prompt) + 1)))
    lm.split = True
    result = keystep("run", "p.yaml", "--forecast", "--ahead-by", "3")
    assert result.exit_code == 3 and "step 150" in result.stderr
    lm.split, lm.requests = False, []
    found = json.loads(keystep("resume", "--json").stdout)
    assert (found["correct"], found["steps"], found["forecast"]["k"], found["forecast"]["truth"]) == (True, 200, 3, "checker")
    assert not any(request.key.startswith("forecast/") for request in lm.requests)


def test_a_margin_that_is_too_small_is_refused(keystep, use):
    use(Worker([0.7, 0.3]))
    result = keystep("run", *LEDGER, "--forecast", "--ahead-by", "2")
    assert result.exit_code == 2 and "--ahead-by: does not reach 0.999" in result.stderr and "(got 2)" in result.stderr
    assert "no runs yet" in keystep("runs").stdout
    assert keystep("run", *LEDGER, "--forecast", "--ahead-by", "30", "--cap", "400", "--quiet").exit_code == 0


def test_a_systematic_step_is_refused(keystep, use):
    use(Worker([0.95, 0.05], wrong_at=["forecast/4", "forecast/4/again"]))
    result = keystep("run", *LEDGER, "--forecast")
    assert result.exit_code == 2 and "systematically wrong at steps 4" in result.stderr
    assert "no runs yet" in keystep("runs").stdout


def test_a_budget_that_the_forecast_alone_spends(keystep, use):
    use(Worker())
    result = keystep("run", *LEDGER, "--forecast", "--budget-calls", "50")
    assert result.exit_code == 2 and "was spent by the forecast alone" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--forecast", "--majority", "3"), "exclude each other"),
        (("--forecast", "--first"), "exclude each other"),
        (("--target", "0.9"), "--target: is the forecast's"),
        (("--truth", "t.jsonl"), "--truth: is the forecast's"),
        (("--forecast", "--target", "0"), "target: is a probability"),
    ],
)
def test_flags_that_do_not_go_together(keystep, use, arguments, message):
    use(Worker())
    result = keystep("run", *LEDGER, *arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_a_recorded_run_and_its_forecast_are_replayed(keystep, use):
    use(Worker([0.9, 0.05]))
    first = json.loads(keystep("run", *LEDGER, "--forecast", "--json", "--record", "r.jsonl").stdout)
    again = json.loads(keystep("run", *LEDGER, "--forecast", "--json", "--replay", "r.jsonl").stdout)
    assert again["samples"] == first["samples"] and again["forecast"]["p"] == first["forecast"]["p"]


def test_a_warning_is_a_note(keystep, recwarn):
    result = keystep("forecast", "hanoi", "--set", "disks=3", "--temperature", "0", "--model", "embedded:0")
    assert result.exit_code == 2 and "note: at temperature 0 one model gives the same vote every time" in result.stderr and not recwarn
