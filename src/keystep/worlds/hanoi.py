"""The Tower of Hanoi: the rule that moves it, in plain Python, and its known answers.

A state is three lists of disk numbers from bottom to top, disk 1 the smallest. The rule of MAKER (arXiv 2511.09030) needs the previous
move only: unless it was disk 1's, move disk 1 one peg clockwise; else make the only legal move of another disk.
"""

from __future__ import annotations

from collections.abc import Sequence

Pegs = list[list[int]]


def start(disks: int) -> Pegs:
    return [list(range(disks, 0, -1)), [], []]


def goal(disks: int) -> Pegs:
    """Where the rule ends after 2^disks - 1 moves: peg 2 for an even number of disks, peg 1 for an odd one."""
    return [[], [], list(range(disks, 0, -1))] if disks % 2 == 0 else [[], list(range(disks, 0, -1)), []]


def steps(disks: int) -> int:
    return int(2**disks - 1)


def next_move(previous: Sequence[int] | None, pegs: Pegs) -> list[int]:
    """[disk, from, to] by the rule. `pegs` hold disk 1 and, after a move of disk 1, another disk that can move."""
    home = next(peg for peg in range(3) if pegs[peg] and pegs[peg][-1] == 1)
    if previous is None or previous[0] != 1:
        return [1, home, (home + 1) % 3]
    left, right = (home + 1) % 3, (home + 2) % 3
    if not pegs[right] or (pegs[left] and pegs[left][-1] < pegs[right][-1]):
        return [pegs[left][-1], left, right]
    return [pegs[right][-1], right, left]


def moved(pegs: Pegs, move: Sequence[int]) -> Pegs:
    """The state after a legal move."""
    _, source, target = move
    after = [list(peg) for peg in pegs]
    after[target].append(after[source].pop())
    return after


def tower_moved(pegs: Pegs, disks: int, source: int, target: int) -> Pegs:
    """The state after the tower of the `disks` smallest disks, on top of peg `source`, went to peg `target`."""
    after = [list(peg) for peg in pegs]
    after[target] += after[source][len(after[source]) - disks :]
    del after[source][len(after[source]) - disks :]
    return after


def last_move(disks: int, source: int, target: int) -> list[int]:
    """The last of the moves that take a tower from peg `source` to peg `target`: disk 1's, onto the rest of it."""
    for _ in range(disks - 1):
        source = 3 - source - target  # the tower of one disk less came from the third peg
    return [1, source, target]
