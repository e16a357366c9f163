"""The tokenizer of the embedded string steps: the next word of a text and the rest, a letter of a word, two pieces merged into one.

Every prompt is as long: a field of `WINDOW` characters (filled up behind), then what is to be done with it. A token is a character, so any
string of the letters a to z, of either case, can be asked about. What comes between merged pieces is one token between them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

WORD = 12  # letters of the longest word, characters of the longest piece
WINDOW = 2 * WORD + 1  # characters of a text that are shown at once: two pieces and what comes between them
GLUES = {"nothing": "", "a space": " ", "a comma": ",", "a semi-colon": ";"}
CHARACTERS = string.ascii_letters + " ,;"

END, PAD, SPLIT, MERGE, BREAK, GLUE = 0, 1, 2, 3, 4, 5  # GLUE is the first of 4, PLACE of WORD, CHARACTER of all characters
PLACE = GLUE + len(GLUES)
LAST = PLACE + WORD
CHARACTER = LAST + 1
VOCABULARY = CHARACTER + len(CHARACTERS)

KNOWS = (
    f"the next word of at most {WINDOW} characters, a letter of a word of at most {WORD}, two pieces of at most {WORD} merged, of the "
    "letters a to z and A to Z, in the words of the built-in procedure `letters`"
)

SPLITTING = """\
The next word of a text.
Text: "{text}"

Split the first word off. What stands behind the space after it is the rest, to be left as it is.
Answer with exactly two lines, and nothing else:
answer = "[the first word]"
rest = "[the rest, nothing if there is none]"
"""

PICKING = """\
One letter of a word.
Word: "{word}"
Position, counted from 1: {position}

Answer with exactly one line, and nothing else:
answer = "[the letter at this position]"
"""

MERGING = """\
Two pieces of text, merged into one.
First: "{first}"
Second: "{second}"
Between them: {glue}

Answer with exactly one line, and nothing else:
answer = "[the first piece, what comes between them, the second piece]"
"""

_PARTS = {
    "text": rf"[a-zA-Z]{{1,{WORD}}}(?: [a-zA-Z]{{1,{WORD}}})* ?",
    "word": rf"[a-zA-Z]{{1,{WORD}}}",
    "position": rf"[1-9]|1[0-{WORD - 10}]|last",
    "first": rf"[a-zA-Z ,;]{{1,{WORD}}}",
    "second": rf"[a-zA-Z ,;]{{1,{WORD}}}",
    "glue": "|".join(GLUES),
}


def _known(prompt: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", lambda found: f"(?P<{found[1]}>{_PARTS[found[1]]})", re.escape(prompt)))


_SPLITTING, _PICKING, _MERGING = map(_known, (SPLITTING, PICKING, MERGING))


def split(text: str) -> str:
    """The prompt that splits the first word off."""
    return SPLITTING.format(text=text)


def pick(word: str, position: int | None) -> str:
    """The prompt that asks for a letter; None is the last one."""
    return PICKING.format(word=word, position="last" if position is None else position)


def merge(first: str, second: str, glue: str) -> str:
    """The prompt that merges two pieces; `glue` is a key of GLUES."""
    return MERGING.format(first=first, second=second, glue=glue)


def encode(text: str) -> tuple[list[int], int] | None:
    """Tokens of a known prompt and how many of them are a shared prefix (none here); None for any other text."""
    if found := _SPLITTING.fullmatch(text):
        return (_field(characters(found["text"]), SPLIT), 0) if len(found["text"]) <= WINDOW else None
    if found := _PICKING.fullmatch(text):
        word, position = found["word"], found["position"]
        if position == "last":
            return _field(characters(word), LAST), 0
        return (_field(characters(word), PLACE + int(position) - 1), 0) if int(position) <= len(word) else None
    if found := _MERGING.fullmatch(text):
        between = GLUE + list(GLUES).index(found["glue"])
        return _field([*characters(found["first"]), between, *characters(found["second"])], MERGE), 0
    return None


def decode(tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, whatever they are: a malformed answer stays visibly malformed."""
    written = "".join('"\nrest = "' if token == BREAK else _character(token) for token in tokens)
    return f'answer = "{written}"'


def _field(tokens: list[int], task: int) -> list[int]:
    return [*tokens, *[PAD] * (WINDOW - len(tokens)), task]


def characters(text: str) -> list[int]:
    """The tokens of a text of CHARACTERS."""
    return [CHARACTER + CHARACTERS.index(character) for character in text]


def _character(token: int) -> str:
    return CHARACTERS[token - CHARACTER] if token >= CHARACTER else "?"
