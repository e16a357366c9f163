"""Small transformers that play the handlers of Decomposed Prompting's letter task, trained from scratch; and one that writes it all out.

They read and write the very texts of the solver: its prompts without examples, its lines, JSON answers. Tokens are the fixed phrases of
those texts, sixty names, and single letters, so that a net has to know how a name is spelt, as models of subwords do. A net answers all
prompts that wait at one time together, greedily or drawn (keyed like every draw of the engine).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from random import Random
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from keystep.lm.base import Prompt
from keystep.reproduce._nets import Batch, Batched
from keystep.solve.decomposed_prompting.grammar import written
from keystep.solve.decomposed_prompting.solver import DecomposedPrompting

NAMES = (  # noqa: SIM905 (a list of sixty texts is no easier to read)
    "aaron adele agnes alan albert alice alma amir anna anton astrid basil boris bruno carla cecil clara colin conrad dana "
    "daphne david doris edgar edith elias elsa emil erwin esther fabian felix fiona flora frank frida georg greta hanna "
    "hector helga hugo ingrid irene isaac ivan jacob joan judith julia karin klaus laura leon linus magda martin miriam naomi "
    "oscar"
).split(" ")
GLUE = {"a space": " ", "a comma": ",", "a semi-colon": ";"}
POSITIONS = (1, 2, 3, 4)  # every name has at least so many letters
LONGEST_NAME, LONGEST_LIST = 6, 8
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PLACED = [f"{', ' if n > 1 else ''}({letter}, {n})" for n in range(1, LONGEST_NAME + 1) for letter in _LETTERS]  # a letter with its place
_PHRASES = [
    "QC: ", "\nQS:", "\nA: ", "\nA:", "\n\nQ: ", "Q: ", "Take the letters at position ", " of the words and concatenate them using ", *GLUE,
    ".", "?", " [words] What are the words?", " (project_values) [str_position] What is the letter at position ", ' in "#1"?',
    " [merge] Concatenate #2 using ", " [EOQ]", "What is the letter at position ", ' in "', '"?',
    ' [split] What are the letters and their positions in "', " [arr_position] What is the letter at position ", " in #1?",
    "What are the words?", 'What are the letters and their positions in "', "Concatenate ", " using ",
    ' ["', '["', '"]', ' "[', '"[', ' in "[', ']"', ' "', '"', " so ", *"123456789",
]  # fmt: skip
_ITEMS = [*NAMES, *_LETTERS]
_SEPARATORS = ('", "', *GLUE.values())
TOKENS = [*_PHRASES, *_ITEMS, *_PLACED, *(each for each in _SEPARATORS for _ in range(LONGEST_LIST))]
END, FILL = len(TOKENS), len(TOKENS) + 1  # of an answer; after it
VOCABULARY = len(TOKENS) + 2
_NUMBER = {token: number for number, token in reversed([*enumerate(TOKENS)])}  # of a separator: its first
_PIECE = re.compile("|".join(map(re.escape, sorted(_NUMBER, key=len, reverse=True))))
_ENDS = {END, FILL, *(number for number, token in enumerate(TOKENS) if token[0] == "\n")}
_FRAMES = DecomposedPrompting()
_ASKED, _GIVEN = "<question>", "<context>"  # in the frames, which are read once

Example = tuple[str, str]  # prompt, answer
Row = list[tuple[str, bool]]  # parts of a text, and whether the loss counts them


class Examples(Protocol):
    """A kind of training rows: some of them, with at most so many words or letters."""

    def __call__(self, random: Random, longest: int) -> list[Row]: ...


def tokens(text: str) -> list[int]:
    """The text as token numbers, longest pieces first; a character that is no token is FILL.

    The separators of a list are numbered: the second one is another token than the first, so that a place is found by what stands there.
    """
    found, at, separators = [], 0, 0
    while at < len(text):
        match = _PIECE.match(text, at)
        piece = text[at] if match is None else match[0]
        number = _NUMBER.get(piece, FILL)
        if piece in _SEPARATORS:
            number += min(separators, LONGEST_LIST - 1)
            separators += 1
        elif piece not in _ITEMS:
            separators = 0
        found.append(number)
        at += len(piece)
    return found


# The task, and what the handlers of a perfect program would say.


def question(position: int, glue: str) -> str:
    return f"Take the letters at position {position} of the words and concatenate them using {glue}."


def truth(asked: str, words: str) -> str:
    """The answer; `words` is the context, which is all that grows."""
    position, glue = _parts(asked)
    return GLUE[glue].join(word[position - 1] for word in words.split())


def _parts(asked: str) -> tuple[int, str]:
    match = re.fullmatch(r"Take the letters at position (\d) of the words and concatenate them using (.*)\.", asked)
    assert match is not None
    return int(match[1]), match[2]


def drawn(random: Random, words: int) -> tuple[str, str]:
    """A question and its words."""
    return question(random.choice(POSITIONS), random.choice(list(GLUE))), " ".join(random.sample(NAMES, words))


def spelt(word: str) -> str:
    return f"[{', '.join(f'({letter}, {number})' for number, letter in enumerate(word, 1))}]"


def program(asked: str, words: str) -> list[tuple[str, Any]]:
    """The lines of the upper decomposer with their answers, [EOQ] left out."""
    position, glue = _parts(asked)
    letters = [word[position - 1] for word in words.split()]
    return [
        ("[words] What are the words?", words.split()),
        (f'(project_values) [str_position] What is the letter at position {position} in "#1"?', letters),
        (f"[merge] Concatenate #2 using {glue}.", GLUE[glue].join(letters)),
    ]


def lower_program(word: str, position: int) -> list[tuple[str, Any]]:
    return [
        (f'[split] What are the letters and their positions in "{word}"?', spelt(word)),
        (f"[arr_position] What is the letter at position {position} in #1?", word[position - 1]),
    ]


def right(handler: str, asked: str, words: str, answer: Any) -> bool:
    """Whether a handler's answer is right for the question it was asked, wherever that came from."""
    if handler == "decompose":
        return bool(answer == truth(asked, words))
    if asked == "What are the words?":
        return bool(answer == words.split())
    if handler == "merge":
        match = re.fullmatch(r"Concatenate (\[.*\]) using (.*)\.", asked)
        return match is not None and match[2] in GLUE and answer == GLUE[match[2]].join(re.findall(r'"(.)"', match[1]))
    if handler == "arr_position":
        match = re.fullmatch(r'What is the letter at position (\d) in "(\[.*\])"\?', asked)
        return match is not None and answer == dict((n, c) for c, n in re.findall(r"\((.), (\d)\)", match[2])).get(match[1])
    match = re.fullmatch(r'What (?:is the letter at position (\d)|are the letters and their positions) in "(.*)"\?', asked)
    if match is None:
        return False
    return bool(answer == (spelt(match[2]) if match[1] is None else match[2][int(match[1]) - 1 : int(match[1])]))


# Training examples.


def steps_of(asked: str, lines: Sequence[tuple[str, Any]]) -> Iterator[Example]:
    """A decomposer's examples: every line after those before it, and the end."""
    for at in range(len(lines) + 1):
        before = [{"line": line, "answer": written(answer)} for line, answer in lines[:at]]
        said = {"question": asked, "lines": before, "handlers": [], "examples": "", "instructions": ""}
        yield _FRAMES.prompt("decomposer.txt", **said), f" {lines[at][0] if at < len(lines) else '[EOQ]'}"


def handled(asked: str, answer: Any, context: str = "") -> Example:
    return _frame(bool(context)).replace(_ASKED, asked).replace(_GIVEN, context), f" {written(answer)}"


@lru_cache
def _frame(context: bool) -> str:
    return _FRAMES.prompt("handler.txt", question=_ASKED, context=_GIVEN if context else "", examples="", instructions="")


@lru_cache
def _program_frame() -> str:
    return _FRAMES.prompt("decomposer.txt", question=_ASKED, lines=[], handlers=[], examples="", instructions="")


def row(example: Example) -> Row:
    return [(example[0], False), (example[1], True)]


def decomposed(asked: str, lines: Sequence[tuple[str, Any]]) -> Row:
    """A whole program as one row: its lines count, and that each ends."""
    first = _program_frame().replace(_ASKED, asked)
    done = [part for line, answer in lines for part in ((f" {line}", True), ("\nA: ", True), (f"{written(answer)}\nQS:", False))]
    return [(first, False), *done, (" [EOQ]", True)]


def rolled_out(random: Random, longest: int) -> list[Row]:
    return [row(chain(*drawn(random, random.randint(2, longest))))]


def chain(asked: str, words: str) -> Example:
    """The same procedure in one answer: the words, each word's letters and its letter, and all of them together."""
    position, _ = _parts(asked)
    each = "".join(f" {word} {written(spelt(word))} {written(word[position - 1])}" for word in words.split())
    prompt, listed = handled(asked, words.split(), words)
    return prompt, f"{listed}{each} so {written(truth(asked, words))}"


def decomposing(random: Random, longest: int) -> list[Row]:
    """Both programs."""
    asked, words = drawn(random, random.randint(2, longest))
    word, position = random.choice(NAMES), random.choice(POSITIONS)
    lower = decomposed(f'What is the letter at position {position} in "{word}"?', lower_program(word, position))
    return [decomposed(asked, program(asked, words)), lower]


def splitting(random: Random, longest: int) -> list[Row]:
    words, word = random.sample(NAMES, random.randint(1, longest)), random.choice(NAMES)
    return [
        row(handled("What are the words?", words, " ".join(words))),
        row(handled(f'What are the letters and their positions in "{word}"?', spelt(word))),
    ]


def positioning(random: Random, longest: int) -> list[Row]:
    word = "".join(random.choice(_LETTERS) for _ in range(random.randint(POSITIONS[-1], LONGEST_NAME)))
    position = random.choice(POSITIONS)
    return [row(handled(f"What is the letter at position {position} in {written(spelt(word))}?", word[position - 1]))]


def merging(random: Random, longest: int) -> list[Row]:
    letters, glue = [random.choice(_LETTERS) for _ in range(random.randint(1, longest))], random.choice(list(GLUE))
    return [row(handled(f"Concatenate {written(letters)} using {glue}.", GLUE[glue].join(letters)))]


def batches(kinds: Sequence[Callable[[Random], list[Row]]], tokens_each: int) -> Callable[[np.random.Generator], Batch]:
    """Batches of about so many tokens, of examples of all kinds in turn."""

    def batch(draw: np.random.Generator) -> Batch:
        random = Random(int(draw.integers(2**62)))
        rows: list[list[tuple[int, bool]]] = []
        size = turn = 0
        while size < tokens_each:
            for parts in kinds[turn % len(kinds)](random):
                rows.append([*((token, counts) for text, counts in parts for token in tokens(text)), (END, True)])
                size += len(rows[-1])
            turn += 1
        longest = max(map(len, rows))
        filled = np.full((len(rows), longest), FILL)
        counted = np.zeros(filled.shape, bool)
        for number, each in enumerate(rows):
            filled[number, : len(each)] = [token for token, _ in each]
            counted[number, : len(each)] = [counts for _, counts in each]
        return filled, counted

    return batch


class Writer(Batched):
    """A net as a language model: it writes token after token up to END, the end of a line, or `longest`."""

    def __init__(self, name: str, model: Any, longest: int) -> None:
        super().__init__(name)
        self.model, self.longest = model, longest

    def answers(self, prompts: list[Prompt], temperature: float, uniform: NDArray[np.float64]) -> list[str]:
        import torch

        read = [tokens(str(prompt)) for prompt in prompts]
        length = max(map(len, read))
        asked = torch.tensor([[FILL] * (length - len(row)) + row for row in read])
        seen = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in read])
        places = (seen.cumsum(1) - 1).clamp(min=0)
        draws = [np.random.default_rng(int(number * 2**53)) for number in uniform] if temperature > 0 else []
        done, found = torch.zeros(len(read), dtype=torch.bool), list[Any]()
        cache, ends = None, torch.tensor(sorted(_ENDS))
        with torch.inference_mode():
            for _ in range(self.longest):
                given = {"input_ids": asked, "attention_mask": seen, "position_ids": places, "past_key_values": cache}
                out = self.model(**given, use_cache=True, logits_to_keep=1)
                cache, scores = out.past_key_values, out.logits[:, -1].double()
                if draws:
                    scores = scores / temperature + torch.from_numpy(np.stack([draw.gumbel(size=VOCABULARY) for draw in draws]))
                asked = scores.argmax(1, keepdim=True)
                found.append(asked[:, 0])
                done |= torch.isin(asked[:, 0], ends)
                if bool(done.all()):
                    break
                seen, places = torch.cat([seen, torch.ones_like(asked)], 1), places[:, -1:] + 1
        return [_text(row) for row in torch.stack(found, 1).tolist()]


def _text(row: Sequence[int]) -> str:
    end = next((at for at, token in enumerate(row) if token in _ENDS), len(row))
    return "".join(TOKENS[token] for token in row[:end])
