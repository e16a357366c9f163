import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worker import Worker, written

from keystep.errors import BadInput
from keystep.run import AheadBy, Flag, Run
from keystep.run.builtin import BUILTIN, Add, Hanoi, Ledger, Multiply, Sort, builtin
from keystep.worlds import hanoi, ledger


def truths(procedure):
    """The right answers, by way of prompt, text and parser."""
    state = procedure.start()
    while not procedure.done(state):
        answer = procedure.parse(written(procedure.prompt(state), 0), state)
        yield answer
        state = procedure.update(state, answer)


@pytest.mark.parametrize(
    "procedure",
    [
        Hanoi(3), Hanoi(7), Ledger(50, words=12), Ledger(1, words=2, instance=4), Add(99999, 1), Add(7, 8), Multiply(987, 6540),
        Multiply(3, 9), Sort([5, -3, 5, 0, -9999]), Sort([2, 1]), Sort(size=40),
    ],
)  # fmt: skip
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


def ended(procedure):
    """The state after the right answers."""
    state = procedure.start()
    for answer in truths(procedure):
        state = procedure.update(state, answer)
    return state


whole = st.integers(0, 10**12) | st.integers(0, 120)


@given(whole, whole)
def test_columns_with_right_answers_give_sum_and_product(a, b):
    added, multiplied = Add(a, b), Multiply(a, b)
    assert ended(added) == {"sum": a + b} and ended(multiplied) == {"product": a * b}
    assert added.total() == max(len(str(a)), len(str(b))) and multiplied.total() == len(str(a)) * len(str(b))
    for procedure in (added, multiplied):
        assert [answer for _, answer in procedure.truth()] == list(truths(procedure))
    for state, (_, carry) in multiplied.truth():
        assert carry <= int(str(b)[::-1][state["row"]])  # what training takes for granted


@given(st.lists(st.integers(-9999, 9999), min_size=1, max_size=60))
def test_merging_with_right_answers_sorts(values):
    procedure = Sort(values)
    assert ended(procedure) == {"sorted": sorted(values)}
    assert [answer for _, answer in procedure.truth()] == list(truths(procedure))
    size = len(values)
    assert procedure.total() <= size * (size - 1).bit_length() and (size == 1) == (procedure.total() == 0)


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=12), st.data())
def test_a_wrong_answer_is_found_whatever_follows(values, data):
    """One pair the wrong way round; from there on all answers are right for the state they are asked in."""
    procedure = Sort(values)
    at, state, answers = data.draw(st.integers(0, procedure.total() - 1)), procedure.start(), []
    wrong = None
    while not procedure.done(state) and len(answers) < procedure.total():
        answer = procedure.parse(written(procedure.prompt(state), int(len(answers) == at)), state)
        if len(answers) == at and answer[0] != answer[1]:
            wrong = at
        answers.append(answer)
        state = procedure.update(state, answer)
    assert procedure.check(answers) == wrong


def test_an_item_is_asked_and_judged_as_it_is_written():
    product = Multiply(question="Multiply the following numbers:\n46048 × 42098", answer="1938528704", id="mul-5x5-0")
    assert product.numbers == (46048, 42098) and product.check(list(truths(product))) is None
    assert Multiply(question="12 * 34").numbers == Multiply(question="12x34").numbers == (12, 34)
    wrong = Multiply(question="3 × 4", answer="13")
    assert wrong.check(list(truths(wrong))) == wrong.total() == 1
    assert Add(question="What is 30+4?", answer="34").numbers == (30, 4)
    ordered = Sort(question="Sort it, and output the JSON list after '####':\n[3, -1, 2]", answer="[-1,2,3]", id="sort-3-0")
    assert ordered.numbers == [3, -1, 2] and ordered.check(list(truths(ordered))) is None
    wrong = Sort(question="[3, 1]", answer="[3, 1]")
    assert wrong.check(list(truths(wrong))) == wrong.total()


def test_sums_products_and_lists_are_voted_right_by_an_erring_worker():
    for name, own, result in [
        ("add", {"a": 999, "b": 12345}, {"sum": 13344}),
        ("multiply", {"a": 12345, "b": 67890}, {"product": 838102050}),
        ("sort", {"values": [30, -1, 7, 7, 0]}, {"sorted": [-1, 0, 7, 7, 30]}),
    ]:
        outcome = Run(Worker([0.85, 0.1]), vote=AheadBy(5), seed=1).execute_sync(builtin(name, own))
        assert outcome.correct and outcome.result == result


@pytest.mark.parametrize(
    "text", ["", "digit = 3", "carry = 3", "digit = 3\ncarry = 12", "digit = 3\ndigit = 3\ncarry = 1", "digit = x\ncarry = 1"]
)
def test_malformed_columns_are_flagged(text):
    procedure = Multiply(12, 34)
    with pytest.raises(Flag):
        procedure.parse(text, procedure.start())
    assert procedure.parse(" Digit=3 \n\ncarry = 0", procedure.start()) == [3, 0]


@pytest.mark.parametrize(
    "text",
    [
        "", "smaller = second\nsorted = 3, 4", "smaller = second\nsorted = [3]", "smaller = second\nsorted = [3, 4, 5]", "sorted = [3, 4]",
        "smaller = second\nsorted = [3, 5]", "smaller = second\nsorted = [3, 4]\nsorted = [3, 4]", "smaller = first\nsorted = [3, 4]",
        "smaller = third\nsorted = [3, 4]", "smaller = second\nsmaller = first\nsorted = [3, 4]",
    ],
)  # fmt: skip
def test_malformed_pairs_are_flagged(text):
    procedure = Sort([4, 3])
    with pytest.raises(Flag):
        procedure.parse(text, procedure.start())
    assert procedure.parse("Smaller = first\nsorted = [4, 3]", procedure.start()) == [4, 3]  # wrong, and no reason to throw it away


def test_built_in_by_name():
    assert builtin("multiply", {"a": 5, "b": 6}) == Multiply(5, 6) and builtin("add", {}).total() == 5
    assert builtin("sort", {"values": [2, 1]}) == Sort([2, 1])
    assert builtin("hanoi", {"disks": 5}) == Hanoi(5)
    assert builtin("ledger", {"steps": 5, "words": 7, "instance": 1}) == Ledger(5, 7, 1)
    assert builtin("hanoi", {}).total() == 4095
    assert set(BUILTIN) == {"hanoi", "ledger", "add", "multiply", "sort", "edits", "letters", "problem"}


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
        ("multiply", {"a": "12"}, "a"),
        ("multiply", {"a": -1}, "a"),
        ("multiply", {"b": 10**1000}, "b"),
        ("multiply", {"question": "3 × 4", "a": 3}, "question and a"),
        ("multiply", {"question": "3 and 4"}, "question"),
        ("multiply", {"question": "1 × 2, 3 × 4"}, "question"),
        ("multiply", {"question": f"{'1' * 5000} × 2"}, "question"),
        ("multiply", {"question": 3}, "question"),
        ("multiply", {"answer": "twelve"}, "answer"),
        ("add", {"id": [3]}, "id"),
        ("sort", {"values": []}, "values"),
        ("sort", {"values": [1.5, 2]}, "values"),
        ("sort", {"values": "[1, 2]"}, "values"),
        ("sort", {"values": [1, 2], "question": "[1, 2]"}, "question and values"),
        ("sort", {"question": "[1, x]"}, "question"),
        ("sort", {"question": "[]"}, "question"),
        ("sort", {"question": "[2, 1]", "answer": "1, 2"}, "answer"),
        ("sort", {"size": 10_001}, "size"),
    ],
)
def test_settings_that_cannot_be(name, settings, field):
    with pytest.raises(BadInput) as refused:
        builtin(name, settings)
    assert refused.value.field == field


def test_different_work_has_different_identities():
    kinds = [Hanoi(3), Hanoi(4), Ledger(5, 6), Ledger(6, 6), Ledger(5, 7), Ledger(5, 6, 1)]
    kinds += [
        Add(3, 4),
        Multiply(3, 4),
        Multiply(4, 3),
        Multiply(3, 4, answer="12"),
        Sort([3, 4]),
        Sort([4, 3]),
        Sort([4, 3], answer="[3, 4]"),
    ]
    assert len({str(kind.identity()) for kind in kinds}) == len(kinds)


def test_answers_and_ids_may_be_numbers_and_lists():
    """As `--set answer=156` and a file's {"answer": 156} are read."""
    product = builtin("multiply", {"question": "12 × 13", "answer": 156, "id": 7})
    assert product.identity() == builtin("multiply", {"question": "12 × 13", "answer": "156"}).identity()
    assert product.check(list(truths(product))) is None
    assert builtin("multiply", {"question": "12 × 13", "answer": 157}).check(list(truths(product))) is not None
    assert builtin("sort", {"question": "[3, 1, 2]", "answer": [1, 2, 3]}).expected == [1, 2, 3]
    for question in ({"Add": "12 + 13"}, True, [1], None):
        with pytest.raises(BadInput, match=r"question: is a text .*in quotes" if question else "in quotes"):
            builtin("add", {"question": question})


@pytest.mark.parametrize(
    ("question", "numbers"),
    [
        ("What is 12 + 13?", (12, 13)),
        ("12+13", (12, 13)),
        ("No. 7: 12 + 13.", (12, 13)),
        ("Add, please, 12 + 13, and say what comes out.", (12, 13)),
        ("12,345 + 6", None),
        ("6 + 12,345", None),
        ("1.5 + 2", None),
        (".5 + 2", None),
        ("2 + 1.5", None),
        ("-3 + 5", None),
        ("7 - 3 + 5", None),
        ("1 + 2 + 3", None),
        ("3 × 1 + 2", None),
        ("1 + 2 × 3", None),
    ],
)
def test_a_question_is_read_whole_or_refused(question, numbers):
    """Never a piece of a longer number, or of a longer sum."""
    if numbers is None:
        with pytest.raises(BadInput, match="question: does not hold one pair of numbers"):
            builtin("add", {"question": question})
    else:
        assert builtin("add", {"question": question}).numbers == numbers


def test_products_with_an_x():
    assert builtin("multiply", {"question": "Of the box: 3 x 4 xylophones"}).numbers == (3, 4)
    for question in ("3 x 4 x 5", "3x4x5", "3 x 4 × 5"):
        with pytest.raises(BadInput, match="question"):
            builtin("multiply", {"question": question})


def test_one_number_alone_is_not_added_to_a_default():
    for name in ("add", "multiply"):
        with pytest.raises(BadInput, match="a and b: are given together"):
            builtin(name, {"a": 12})
