"""Examples: read, encoded, judged; calibration by known answers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keystep.errors import BadInput
from keystep.nn.calibration import ece
from keystep.nn.examples import Example, Examples, judge, loss_of, read_examples
from keystep.worlds.skills import World, small_model, tokenizer


def written(tmp_path, *rows):
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def test_the_three_forms(tmp_path):
    assert read_examples(written(tmp_path, {"prompt": "a", "answer": "b", "more": 1}, "", {"prompt": "", "answer": "c"})) == [
        Example("a", "b"), Example("", "c"),
    ]  # fmt: skip
    assert read_examples(written(tmp_path, {"text": "ab"})) == [Example("", "ab", "text")]
    rows = [{"text": "x", "label": "good"}, {"text": "y", "label": "bad"}]
    assert read_examples(written(tmp_path, *rows), limit=1) == [Example("x", "good", "label")]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["{"], "line 1: is no JSON"),
        ([{"text": "a"}, {"prompt": "a", "answer": "b"}], "line 2: is of another form"),
        ([{"text": "a", "answer": "b"}], "line 1: is of no known form"),
        ([{"prompt": "a", "answer": ""}], "line 1.answer: is a text that is not empty"),
        ([{"prompt": "a", "answer": 3}], "line 1.answer: is a text that is not empty (got 3)"),
        ([[1]], "is of no known form"),
        ([b"\xff".decode("latin1").join('""')], "is of no known form"),
        ([], "holds no example"),
    ],
)
def test_bad_lines_are_named(tmp_path, rows, said):
    with pytest.raises(BadInput) as error:
        read_examples(written(tmp_path, *rows))
    assert said in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        read_examples(tmp_path / "none.jsonl")


def test_answers_and_the_end_are_counted():
    data = Examples([Example("~ab=", "ba"), Example("!a=", "a")], tokenizer())
    batch = data.batch([0, 1])
    assert batch.tokens.shape == (2, 7) and batch.counted.tolist() == [[False] * 3 + [True] * 3, [False, False, True, True, False, False]]
    assert batch.attended.sum(1).tolist() == [7, 5] and batch.tokens[0, -1] == tokenizer().eos_token_id
    whole = Examples([Example("", "abc", "text")], tokenizer()).batch([0])
    assert whole.tokens.shape == (1, 4) and whole.counted.all()


def test_labels_are_told_by_their_first_token():
    rows = [Example("!a=", "yes", "label"), Example("!b=", "no", "label")]
    data = Examples(rows, tokenizer())
    y, n = tokenizer()("yn")["input_ids"]
    assert data.labels == {"no": n, "yes": y} and data.batch([0]).tokens[0, -1] == y
    logits = torch.zeros(2, 4, 50)
    logits[:, 2, y], logits[:, 2, n], logits[:, 2, 0] = 1.0, 0.0, 9.0  # what is no label does not count
    found = judge(lambda **_: SimpleNamespace(logits=logits), data)
    assert found.right.tolist() == [True, False] and found.confidence == pytest.approx([torch.sigmoid(torch.tensor(1.0)).item()] * 2)
    assert found.loss == pytest.approx(loss_of(logits, data.batch([0, 1]), data.labels).item())
    with pytest.raises(BadInput, match="begins with the same token"):
        Examples([Example("a", "no", "label"), Example("a", "never", "label")], tokenizer())
    with pytest.raises(BadInput, match="does not know"):
        Examples([Example("a", "other", "label")], tokenizer(), labels=data.labels)


def test_too_long_is_an_error():
    with pytest.raises(BadInput, match="example 1: has 7 tokens, more than the model's 6"):
        Examples([Example("~ab=", "ba")], tokenizer(), longest=6)


def test_judging_is_greedy_decoding():
    model, world = small_model(width=16, heads=2), World(5)
    data = Examples([Example(*p) for p in world.drawn("copy", "test", 20)], tokenizer())
    found = judge(model, data, batch=7)
    assert found.right.shape == (20,) and found.agreement(found) == 1.0 and found.accuracy == found.right.mean()
    assert np.array_equal(found.chosen, judge(model, data, batch=20).chosen)
    ids = torch.tensor([data.rows[0].tokens[: data.rows[0].start]])
    assert int(model(ids).logits[0, -1].argmax()) == found.chosen[0]
    some = judge(model, data, [3, 5])
    assert np.array_equal(some.right, found.right[[3, 5]])


@given(st.integers(2, 50), st.floats(0, 1), st.integers(0, 9))
def test_splits_are_disjoint_and_whole(n, share, seed):
    data = Examples([Example("a", "b")] * n, SHARED)
    kept, aside = data.split(share, seed)
    assert sorted(kept + aside) == list(range(n)) and kept and aside


SHARED = tokenizer()


def test_ece_by_hand():
    confidence, correct = (0.95, 0.85, 0.75, 0.65, 0.55, 0.92, 0.58, 0.81), (1, 1, 0, 1, 0, 1, 1, 0)
    assert ece(confidence, correct) == pytest.approx(0.2525) and ece(confidence, correct, bins=15) == pytest.approx(0.2525)
    assert ece([0.75] * 4, [1, 1, 1, 0]) == 0 and ece([1.0] * 5, [1, 0, 0, 0, 0]) == pytest.approx(0.8)
    for bad in (([], []), ([0.5], [1, 0]), ([1.5], [1])):
        with pytest.raises(BadInput):
            ece(*bad)
