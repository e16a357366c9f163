import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep.worlds import hanoi


def walk(disks):
    """All moves of the rule, and the states after them."""
    move, pegs = None, hanoi.start(disks)
    for _ in range(hanoi.steps(disks)):
        move = hanoi.next_move(move, pegs)
        pegs = hanoi.moved(pegs, move)
        yield move, pegs


def test_two_disks():
    assert [move for move, _ in walk(2)] == [[1, 0, 1], [2, 0, 2], [1, 1, 2]]


@pytest.mark.parametrize("disks", range(1, 13))
def test_every_move_is_legal_and_the_goal_is_reached_at_the_end_only(disks):
    before = hanoi.start(disks)
    reached = []
    for number, (move, pegs) in enumerate(walk(disks)):
        disk, source, target = move
        assert before[source][-1] == disk
        assert not before[target] or before[target][-1] > disk
        assert sorted(pegs[0] + pegs[1] + pegs[2]) == list(range(1, disks + 1))
        if max(map(len, pegs[1:])) == disks:
            reached.append(number)
        before = pegs
    assert reached == [2**disks - 2]
    assert before == hanoi.goal(disks)


@pytest.mark.parametrize(("disks", "peg"), [(3, 1), (4, 2), (20, 2)])
def test_where_it_ends(disks, peg):
    assert hanoi.goal(disks)[peg] == list(range(disks, 0, -1))
    assert hanoi.steps(20) == 1_048_575
    if disks < 20:
        *_, (_, last) = walk(disks)
        assert last == hanoi.goal(disks)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=20), st.booleans())
def test_from_any_legal_state_the_rule_makes_a_legal_move(places, smallest_moved):
    """Any peg for every disk is a legal state; the rule has an answer unless all disks stand on one peg and disk 1 was just moved."""
    pegs = [[disk for disk in range(len(places), 0, -1) if places[disk - 1] == peg] for peg in range(3)]
    home = places[0]
    if smallest_moved and len(pegs[home]) == len(places):
        return
    disk, source, target = hanoi.next_move([1, (home + 1) % 3, home] if smallest_moved else None, pegs)
    assert (disk != 1) == smallest_moved
    assert pegs[source][-1] == disk
    assert not pegs[target] or pegs[target][-1] > disk
    if not smallest_moved:
        assert (source, target) == (home, (home + 1) % 3)


def test_moved_leaves_the_old_state_alone():
    pegs = hanoi.start(3)
    assert hanoi.moved(pegs, [1, 0, 1]) == [[3, 2], [1], []]
    assert pegs == hanoi.start(3)


@pytest.mark.parametrize("disks", range(1, 11))
def test_a_towers_end_and_its_last_move_are_those_of_the_rule(disks):
    *_, (move, pegs) = walk(disks)
    target = 2 if disks % 2 == 0 else 1
    assert hanoi.last_move(disks, 0, target) == move
    assert hanoi.tower_moved(hanoi.start(disks), disks, 0, target) == pegs


def test_a_tower_is_moved_on_top_of_what_is_there_and_the_old_state_is_left_alone():
    before = [[5, 2, 1], [4], [3]]
    assert hanoi.tower_moved(before, 2, 0, 2) == [[5], [4], [3, 2, 1]]
    assert hanoi.tower_moved(before, 0, 0, 2) == before == [[5, 2, 1], [4], [3]]
