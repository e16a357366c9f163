"""The tokenizer of the embedded Hanoi step: the prompt it knows, text to tokens and tokens to text.

The fixed words of the prompt carry nothing that changes, so they cost no token: a prompt is its three variable parts (previous move,
pegs), written in a vocabulary of one token per disk, peg and mark. Any other text is refused (`encode` returns None), never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

END, ARROW, NONE, PEG, OPEN, DISK = 0, 1, 2, 3, 6, 9  # PEG, OPEN and DISK are the first of 3, 3 and MAX_DISKS tokens
MIN_DISKS, MAX_DISKS = 3, 20
VOCABULARY = DISK + MAX_DISKS

KNOWS = f"one step of the Tower of Hanoi with {MIN_DISKS} to {MAX_DISKS} disks, in the words of the built-in procedure `hanoi`"

PROMPT = """\
Tower of Hanoi, {disks} disks, pegs 0, 1 and 2. Disk 1 is the smallest. Each peg is listed from bottom to top.
Only the top disk of a peg may move, and never onto a smaller disk.
If the previous move was not of disk 1 (or there was none), move disk 1 one peg clockwise: 0 to 1, 1 to 2, 2 to 0.
Otherwise make the only legal move that does not move disk 1.
Example with 3 disks: after move [1, 0, 1] and pegs [[3, 2], [1], []], the answer is
move = [2, 0, 2]
next_state = [[3], [1], [2]]

Previous move [disk, from, to]: {previous}
Pegs: {pegs}

Answer with exactly two lines, and nothing else:
move = [disk, from, to]
next_state = [[...], [...], [...]]
"""

_NUMBERS = r"\[[0-9, ]*\]"
_KNOWN = re.compile(
    re.escape(PROMPT)
    .replace(r"\{disks\}", r"(?P<disks>\d{1,2})")
    .replace(r"\{previous\}", rf"(?P<previous>none|{_NUMBERS})")
    .replace(r"\{pegs\}", rf"(?P<pegs>\[{_NUMBERS}, {_NUMBERS}, {_NUMBERS}\])")
)


def render(previous: Sequence[int] | None, pegs: Sequence[Sequence[int]]) -> str:
    """The prompt for one step; `pegs` hold disk numbers from bottom to top, `previous` is [disk, from, to] or None."""
    shown = "none" if previous is None else str(list(previous))
    return PROMPT.format(disks=sum(map(len, pegs)), previous=shown, pegs=str([list(peg) for peg in pegs]))


def encode(text: str) -> tuple[list[int], int] | None:
    """Tokens of a known prompt and how many of them are a shared prefix (none here); None for any other text."""
    known = _KNOWN.fullmatch(text)
    if not known:
        return None
    disks = int(known["disks"])
    pegs = [[int(number) for number in re.findall(r"\d+", peg)] for peg in re.findall(_NUMBERS, known["pegs"])]
    previous = [] if known["previous"] == "none" else [int(number) for number in re.findall(r"\d+", known["previous"])]
    if not MIN_DISKS <= disks <= MAX_DISKS or sorted(disk for peg in pegs for disk in peg) != list(range(1, disks + 1)):
        return None
    if previous and (len(previous) != 3 or not 1 <= previous[0] <= disks or max(previous[1:]) > 2):
        return None
    tokens = [DISK + previous[0] - 1, PEG + previous[1], PEG + previous[2]] if previous else [NONE] * 3
    for number, peg in enumerate(pegs):
        tokens.append(OPEN + number)
        tokens += [DISK + disk - 1 for disk in peg]
    return [*tokens, ARROW], 0


def decode(tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, whatever they are: a malformed answer stays visibly malformed."""
    move, state = list(tokens[:3]), list(tokens[3:])
    pegs, last = "", -1
    for token in state:
        if OPEN <= token < DISK:
            pegs += ("" if last < 0 else "], ") + "["
        else:
            pegs += ("" if last < 0 or OPEN <= last < DISK else ", ") + _word(token)
        last = token
    return f"move = [{', '.join(map(_word, move))}]" + (f"\nnext_state = [{pegs}]]" if state else "")


def _word(token: int) -> str:
    if token >= DISK:
        return str(token - DISK + 1)
    return str((token - PEG) % 3) if token >= PEG else "?"
