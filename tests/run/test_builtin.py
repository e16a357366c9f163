import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worker import written

from keystep.errors import BadInput
from keystep.run import Flag
from keystep.run.builtin import BUILTIN, Hanoi, Ledger, builtin
from keystep.worlds import hanoi, ledger


def truths(procedure):
    """The right answers, by way of prompt, text and parser."""
    state = procedure.start()
    while not procedure.done(state):
        answer = procedure.parse(written(procedure.prompt(state), 0), state)
        yield answer
        state = procedure.update(state, answer)


@pytest.mark.parametrize("procedure", [Hanoi(3), Hanoi(7), Ledger(50, words=12), Ledger(1, words=2, instance=4)])
def test_true_answers_are_right_and_any_change_is_found(procedure):
    right = list(truths(procedure))
    assert len(right) == procedure.total()
    assert procedure.check(right) is None
    for step in {0, len(right) // 2, len(right) - 1}:
        wrong = [*right[:step], [right[step][0], "other"], *right[step + 1 :]]
        assert procedure.check(wrong) == step
        wrong[step] = ["other", right[step][1]]
        assert procedure.check(iter(wrong)) == step
        assert procedure.check(right[:step]) == step  # it ended too early


def test_the_ledgers_answers_are_the_running_sums():
    procedure = Ledger(30, words=9, instance=2)
    words = ledger.dictionary(9, 2)
    total = 0
    for key, answer in zip(ledger.keys(words, 30, 2), truths(procedure), strict=True):
        total += words[key]
        assert answer == [words[key], total]


def test_ledgers_worlds():
    words = ledger.dictionary(100, 0)
    assert len(words) == 100 and all(len(word) == 5 for word in words)
    assert all(-99 <= value <= 99 for value in words.values())
    assert ledger.dictionary(100, 0) == words != ledger.dictionary(100, 1)
    assert ledger.keys(words, 50, 0) == ledger.keys(words, 60, 0)[:50] != ledger.keys(words, 50, 1)


def test_hanois_prompt_shows_the_previous_move_and_the_pegs():
    procedure = Hanoi(4)
    assert "Previous move [disk, from, to]: none\nPegs: [[4, 3, 2, 1], [], []]" in procedure.prompt(procedure.start())
    state = procedure.update(procedure.start(), [[1, 0, 1], [[4, 3, 2], [1], []]])
    assert "Previous move [disk, from, to]: [1, 0, 1]\nPegs: [[4, 3, 2], [1], []]" in procedure.prompt(state)


@pytest.mark.parametrize(
    "text",
    [
        "move = [1, 0, 1]\nnext_state = [[3, 2], [1], []]",
        "MOVE=[1,0,1] Next_State=[[3,2],[1],[]]",
        "move = [ 1 , 0 , 1 ]\nnext_state = [ [3, 2], [ 1 ], [ ] ]",
        "Perhaps move = [2, 0, 2]? No: move = [1, 0, 1]\nnext_state = [[3],[2],[1]], no, next_state = [[3, 2], [1], []].",
    ],
)
def test_hanois_answer_is_the_last_one_written(text):
    procedure = Hanoi(3)
    assert procedure.parse(text, procedure.start()) == [[1, 0, 1], [[3, 2], [1], []]]


def test_hanois_form_is_checked_and_legality_is_not():
    procedure = Hanoi(3)
    assert procedure.parse("move = [3, 0, 9]\nnext_state = [[1, 2], [], [3]]", None) == [[3, 0, 9], [[1, 2], [], [3]]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "move = [1, 0, 1]",
        "next_state = [[3, 2], [1], []]",
        "move = [1, 0]\nnext_state = [[3, 2], [1], []]",
        "move = [1, 0, 1, 2]\nnext_state = [[3, 2], [1], []]",
        "move = [1, 0, 1]\nnext_state = [[3, 2], [1]]",
        "move = [1, 0, 1]\nnext_state = [[3, 2], [1], [], []]",
        "move = [1, 0, 1]\nnext_state = [[3, 2], [], []]",
        "move = [1, 0, 1]\nnext_state = [[3, 2], [1], [1]]",
        "move = [1, 0, 1]\nnext_state = [[3, 2], [4], []]",
        "move = [1, 0, 1]\nnext_state = [[3 2], [1], []]",
        "move = [1, 0, 1]\nnext_state = [3, 2, 1]",
        f"move = [{'1' * 5000}, 0, 1]\nnext_state = [[3, 2], [1], []]",
    ],
)
def test_malformed_moves_are_flagged(text):
    with pytest.raises(Flag):
        Hanoi(3).parse(text, None)


def test_ledgers_answer():
    procedure = Ledger(5, words=3)
    for text in ("value = -7\nsum = +12", " VALUE=-7 \n\n Sum =12\n"):
        assert procedure.parse(text, None) == [-7, 12]


@pytest.mark.parametrize(
    "text",
    [
        "", "value = 3", "sum = 3", "value = 3, sum = 4", "value = 3\nsum = 4\nsum = 5", "value = 3\nvalue = 3\nsum = 4",
        "value = 3.5\nsum = 4", "value = three\nsum = 4", "value = 3\nsum = 4 apples", "value = --3\nsum = 4",
        f"value = {'3' * 5000}\nsum = 4",
    ],
)  # fmt: skip
def test_malformed_sums_are_flagged(text):
    with pytest.raises(Flag):
        Ledger(5, words=3).parse(text, None)


pieces = st.lists(
    st.sampled_from(
        ["move", "next_state", "value", "sum", " = ", "=", "[", "]", ", ", ",", "\n", " ", "1", "2", "3", "-", "+", "0", "²", "٣", "x"]
    )
)


@given(pieces.map("".join) | st.text())
@settings(max_examples=300)
def test_any_text_is_an_answer_or_flagged(text):
    for procedure in (Hanoi(3), Ledger(5, words=3)):
        try:
            answer = procedure.parse(text, procedure.start())
        except Flag:
            continue
        procedure.prompt(procedure.update(procedure.start(), answer))


def test_hanoi_ends_with_the_tower_on_another_peg():
    procedure = Hanoi(4)
    assert not procedure.done(procedure.start())
    assert procedure.done({"previous": None, "pegs": hanoi.goal(4)})
    assert procedure.done({"previous": None, "pegs": [[], [4, 3, 2, 1], []]})
    assert not procedure.done({"previous": None, "pegs": [[1], [4, 3, 2], []]})


def test_built_in_by_name():
    assert builtin("hanoi", {"disks": 5}) == Hanoi(5)
    assert builtin("ledger", {"steps": 5, "words": 7, "instance": 1}) == Ledger(5, 7, 1)
    assert builtin("hanoi", {}).total() == 4095
    assert set(BUILTIN) == {"hanoi", "ledger"}


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("tower", {}, "procedure"),
        ("hanoi", {"rings": 3}, "set"),
        ("hanoi", {"disks": 2}, "disks"),
        ("hanoi", {"disks": 21}, "disks"),
        ("hanoi", {"disks": "5"}, "disks"),
        ("hanoi", {"disks": 5.0}, "disks"),
        ("hanoi", {"disks": True}, "disks"),
        ("ledger", {"steps": 0}, "steps"),
        ("ledger", {"steps": 1_000_001}, "steps"),
        ("ledger", {"words": 1}, "words"),
        ("ledger", {"words": 101}, "words"),
    ],
)
def test_settings_that_cannot_be(name, settings, field):
    with pytest.raises(BadInput) as refused:
        builtin(name, settings)
    assert refused.value.field == field


def test_different_work_has_different_identities():
    kinds = [Hanoi(3), Hanoi(4), Ledger(5, 6), Ledger(6, 6), Ledger(5, 7), Ledger(5, 6, 1)]
    assert len({str(kind.identity()) for kind in kinds}) == len(kinds)
