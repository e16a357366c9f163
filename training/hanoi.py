"""Training examples for the embedded Hanoi step: random legal states of 3 to 20 disks, in the tokens of `keystep.lm.embedded.hanoi`.

A plain random state almost never shows a big disk moving: all smaller ones have to be stacked on one other peg. On the way of a D-disk
tower such states do occur, and a model trained on random states alone fails on just those steps. So three parts of every batch are
drawn on purpose: uniformly over which disk moves *next*, uniformly over which disk moved *last*, and the whole tower at the start.
"""

from __future__ import annotations

import numpy as np

from keystep.lm.embedded.hanoi import ARROW, DISK, END, MAX_DISKS, MIN_DISKS, NONE, OPEN, PEG

MOVES_NEXT, MOVED_LAST, AT_START = 0.35, 0.25, 0.02  # shares of a batch
NO_PREVIOUS = 0.08  # share of the disk-1 examples without a previous move: the first step of every tower


def state_tokens(pegs: np.ndarray) -> np.ndarray:
    """Peg of every disk, int [B, D], to the state's tokens, int [B, D + 3]: each peg's opener, then its disks from bottom to top."""
    batch, disks = pegs.shape
    key = np.concatenate([pegs * 100 + disks - np.arange(disks), np.broadcast_to(np.arange(3) * 100, (batch, 3))], axis=1)
    token = np.concatenate([DISK + np.arange(disks), OPEN + np.arange(3)])
    return token[np.argsort(key, axis=1)]


def smallest_on(pegs: np.ndarray, peg: np.ndarray) -> np.ndarray:
    """Index of the top disk of `peg` in each row, or D where the peg is empty."""
    on = pegs == peg[:, None]
    return np.where(on.any(1), on.argmax(1), pegs.shape[1])


def batch(rng: np.random.Generator, size: int, disks: int) -> np.ndarray:
    """`size` whole examples of `disks` disks, prompt and answer: int [size, 2 * disks + 14]."""
    rows = np.arange(size)
    pegs = rng.integers(0, 3, (size, disks))
    home = pegs[:, 0]
    after_one = rng.random(size) < 0.5  # the previous move was disk 1's, so the other legal move is due
    chosen = rng.integers(0, disks, size)  # the disk that moves next, or moved last, where that is drawn on purpose
    next_is, last_is = rows < size * MOVES_NEXT, (rows >= size * MOVES_NEXT) & (rows < size * (MOVES_NEXT + MOVED_LAST))
    big = (next_is | last_is) & (chosen > 0)
    below = np.arange(disks)[None] < chosen[:, None]
    pegs = np.where(big[:, None] & below, home[:, None], pegs)
    pegs[rows[big], chosen[big]] = ((home + rng.integers(1, 3, size)) % 3)[big]
    after_one = np.where(next_is, big, np.where(last_is, ~big, after_one))
    at_start = rows >= size - int(np.ceil(size * AT_START))
    pegs[at_start], home[at_start], after_one[at_start] = 0, 0, False

    left, right = (home + 1) % 3, (home + 2) % 3
    top_left, top_right = smallest_on(pegs, left), smallest_on(pegs, right)
    after_one &= np.minimum(top_left, top_right) < disks  # nothing but disk 1 can move when all disks stand on its peg
    from_left = top_left < top_right
    other = np.minimum(top_left, top_right)
    source, target = np.where(from_left, left, right), np.where(from_left, right, left)
    move_disk = np.where(after_one, other, 0)
    move_from = np.where(after_one, source, home)
    move_to = np.where(after_one, target, left)

    # Before disk 1's turn another disk moved between the two pegs that disk 1 is not on (or nothing moved yet).
    shown = np.where(last_is & big, top_left == chosen, rng.random(size) < 0.5)
    previous_disk = np.where(shown, top_left, top_right)
    previous_to = np.where(shown, left, right)
    nothing = (previous_disk == disks) | ((rng.random(size) < NO_PREVIOUS) & ~last_is)
    previous = np.where(
        after_one[:, None],
        np.stack([np.full(size, DISK), PEG + right, PEG + home], 1),  # disk 1 goes one peg clockwise, so it came from `right`
        np.where(nothing[:, None], NONE, np.stack([DISK + previous_disk, PEG + left + right - previous_to, PEG + previous_to], 1)),
    )
    following = pegs.copy()
    following[rows, move_disk] = move_to
    column = lambda token: np.full((size, 1), token)  # noqa: E731
    move = np.stack([DISK + move_disk, PEG + move_from, PEG + move_to], 1)
    return np.concatenate([previous, state_tokens(pegs), column(ARROW), move, state_tokens(following), column(END)], axis=1)


def prompt_length(disks: int) -> int:
    return disks + 7


def draw_disks(rng: np.random.Generator, tall: float) -> int:
    """A tower height; 12 and more disks are drawn `tall` times as often as the lower ones."""
    weight = np.where(np.arange(MIN_DISKS, MAX_DISKS + 1) >= 12, tall, 1.0)
    return int(rng.choice(np.arange(MIN_DISKS, MAX_DISKS + 1), p=weight / weight.sum()))


def draw_tall(rng: np.random.Generator) -> int:
    """A tower height of the second stage: the tallest six times out of ten, of the others 16 and more disks three times as often."""
    heights = np.arange(MIN_DISKS, MAX_DISKS + 1)
    weight = np.where(heights >= 16, 3.0, 1.0)
    weight[-1] = 0
    return MAX_DISKS if rng.random() < 0.6 else int(rng.choice(heights, p=weight / weight.sum()))


def path(disks: int) -> np.ndarray:
    """Every step of the whole `disks`-disk task as examples: int [2^disks - 1, 2 * disks + 14]."""
    return path_steps(disks, np.arange(2**disks - 1))


def path_steps(disks: int, numbers: np.ndarray) -> np.ndarray:
    """The steps of these numbers on the way of the whole `disks`-disk task as examples: int [N, 2 * disks + 14]."""
    before, pegs, after = (_pegs(disks, numbers + shift) for shift in (-1, 0, 1))
    previous = np.where((numbers == 0)[:, None], NONE, _move(before, pegs))
    column = lambda token: np.full((len(numbers), 1), token)  # noqa: E731
    return np.concatenate([previous, state_tokens(pegs), column(ARROW), _move(pegs, after), state_tokens(after), column(END)], axis=1)


def _pegs(disks: int, moves: np.ndarray) -> np.ndarray:
    """Peg of every disk after so many moves: disk d moves at steps 2^d (2j + 1), in a direction that alternates with its parity."""
    disk = np.arange(disks)
    made = (moves[:, None] + 2**disk) // 2 ** (disk + 1)
    return np.where(disk % 2 == 0, made, -made) % 3


def _move(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    rows, moved = np.arange(len(before)), (before != after).argmax(1)
    return np.stack([DISK + moved, PEG + before[rows, moved], PEG + after[rows, moved]], 1)


def pool(rng: np.random.Generator, size: int, disks: int, legal: float, listed: np.ndarray | None = None) -> np.ndarray:
    """Examples to look for hard ones in: a part of them as in `batch`, the `listed` ones, and others from the whole task's steps, half of
    these uniformly and half with a uniformly drawn disk moving."""
    random = round(size * legal)
    numbers = rng.integers(0, 2**disks - 1, size - random - (0 if listed is None else len(listed)))
    chosen = rng.integers(0, disks, len(numbers) // 2)
    numbers[: len(chosen)] = 2**chosen * (2 * rng.integers(0, 2 ** (disks - 1 - chosen)) + 1) - 1
    parts = [batch(rng, random, disks), path_steps(disks, numbers), *([] if listed is None else [listed])]
    return np.concatenate(parts)[rng.permutation(size)]
