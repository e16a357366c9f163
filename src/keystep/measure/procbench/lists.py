"""The tasks whose states are lists."""

from __future__ import annotations

import random
import re
from itertools import groupby, pairwise, takewhile
from typing import Any

from keystep.measure.procbench.kind import ALNUM, LETTERS, Config, Kind, found, listed, pairs, text_of


class Count(Kind):
    number, name = 3, "Count"
    rule = (
        "For every string, in order, make a list of four: the string itself; the number N1 of letters in it; the number N2 that its digits "
        "make when written one behind the other (0 where it has none); and N3, which is N1 times N2. Each such list, of four texts, is a "
        "state. The last step adds up the N3 of all strings; that sum, a number, is the final state."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        weights = [0.75] * len(LETTERS) + [0.25] * (len(ALNUM) - len(LETTERS))
        return {"strings": ["".join(draw.choices(ALNUM, weights, k=draw.randrange(4, 10))) for _ in range(steps - 1)]}

    def question(self, config: Config) -> str:
        return f"Strings:\n{config['strings']}"

    def read(self, question: str) -> Config:
        return {"strings": re.findall(r"'(\w+)'", found(r"Strings:\n\[(.*)\]", question)[1])}

    def init(self, config: Config) -> Any:
        return "0"

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number > len(config["strings"]):
            return None
        if number == len(config["strings"]):
            return sum(int(row[3]) for row in states[1:])
        text = config["strings"][number]
        letters, digits = sum(char.isalpha() for char in text), int("".join(char for char in text if char.isdigit()) or 0)
        return [text, str(letters), str(digits), str(letters * digits)]

    def shown(self, config: Config, states: list[Any]) -> Any:
        return states[1:] if len(states) > len(config["strings"]) else states[-1]

    def now(self, config: Config, number: int) -> str:
        if number == len(config["strings"]):
            return "add up the N3 of all lists"
        return f"the string {config['strings'][number]}"


class Search(Kind):
    number, name = 4, "Search"
    rule = (
        "Keep a list with one number for each string, all 0 at first. For every substring, in order, count how often it occurs in each "
        "string without overlap, and add the counts to the list. The state is the list."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        wanted = [text_of(draw, 2) for _ in range(steps)]
        strings = []
        for _ in range(10):
            length, planted = draw.randint(3, 10), draw.choices(wanted, k=draw.randrange(3))
            rest = text_of(draw, length - len(planted))
            place = draw.randint(0, len(rest))
            strings.append(rest[:place] + "".join(planted) + rest[place:])
        return {"strings": strings, "substrings": wanted}

    def question(self, config: Config) -> str:
        return f"{self.given(config)}\nSubstrings: [{', '.join(config['substrings'])}]"

    def read(self, question: str) -> Config:
        match = found(r"Strings: \[(.*)\]\nSubstrings: \[(.*)\]", question)
        return {"strings": listed(match[1]), "substrings": listed(match[2])}

    def init(self, config: Config) -> Any:
        return [0] * len(config["strings"])

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["substrings"]):
            return None
        counts = [text.count(config["substrings"][number]) for text in config["strings"]]
        return [before + count for before, count in zip(states[-1], counts, strict=True)]

    def given(self, config: Config) -> str:
        return f"Strings: [{', '.join(config['strings'])}]"

    def now(self, config: Config, number: int) -> str:
        return f"the substring {config['substrings'][number]}"


class Encode(Kind):
    number, name = 7, "Encode"
    rule = (
        "Write the string of 0s and 1s as its runs, from left to right: a run of n times the character c is written c_n. Each step adds "
        "the next run to the list, which is empty at first. The state is the list."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        bit = draw.randint(0, 1)
        return {"string": "".join(str((bit + place) % 2) * draw.randint(1, 9) for place in range(steps))}

    def question(self, config: Config) -> str:
        return f"String:\n{config['string']}"

    def read(self, question: str) -> Config:
        return {"string": found(r"String:\n([01]+)", question)[1]}

    def init(self, config: Config) -> Any:
        return ""

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        runs = [f"{char}_{len(list(run))}" for char, run in groupby(config["string"])]
        return None if number == len(runs) else runs[: number + 1]

    def given(self, config: Config) -> str:
        return f"String:\n{config['string']}"

    def now(self, config: Config, number: int) -> str:
        return "add the next run"


class Split1(Kind):
    number, name = 8, "Split1"
    rule = (
        "Cut the string at the positions, in the order in which they are given. A position counts the characters before the cut, from the "
        "beginning of the whole string. The state is the list of pieces, in their order within the string."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        text = text_of(draw, draw.randint(steps + 1, max(30, steps + 1)))
        return {"string": text, "positions": draw.sample(range(1, len(text)), steps)}

    def question(self, config: Config) -> str:
        return f"String:\n{config['string']}\nPositions:\n{', '.join(map(str, config['positions']))}"

    def read(self, question: str) -> Config:
        match = found(r"String:\n(\w+)\nPositions:\n([\d, ]+)", question)
        return {"string": match[1], "positions": [int(part) for part in listed(match[2])]}

    def init(self, config: Config) -> Any:
        return [config["string"]]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["positions"]):
            return None
        text = config["string"]
        cuts = [0, *sorted(config["positions"][: number + 1]), len(text)]
        return [text[start:end] for start, end in pairwise(cuts)]

    def given(self, config: Config) -> str:
        return f"String:\n{config['string']}"

    def now(self, config: Config, number: int) -> str:
        return f"the position {config['positions'][number]}"


class Split2(Kind):
    number, name = 9, "Split2"
    rule = (
        "The list of pieces holds the whole string at first. Every pair (i, j), in order, cuts piece number i (counted from 0) behind its "
        "first j characters, and the two parts take its place. The state is the list of pieces."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        length = draw.randint(steps + 1, max(30, steps + 1))
        sizes, cuts = [length], []
        for _ in range(steps):
            piece = draw.choice([place for place, size in enumerate(sizes) if size > 1])
            cut = draw.randint(1, sizes[piece] - 1)
            sizes[piece : piece + 1] = [cut, sizes[piece] - cut]
            cuts.append((piece, cut))
        return {"string": text_of(draw, length), "cuts": cuts}

    def question(self, config: Config) -> str:
        return f"String:\n{config['string']}\nIndices:\n{', '.join(map(str, config['cuts']))}"

    def read(self, question: str) -> Config:
        match = found(r"String:\n(\w+)\nIndices:\n(.*)", question)
        return {"string": match[1], "cuts": pairs(match[2])}

    def init(self, config: Config) -> Any:
        return [config["string"]]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["cuts"]):
            return None
        (piece, cut), state = config["cuts"][number], states[-1]
        return [*state[:piece], state[piece][:cut], state[piece][cut:], *state[piece + 1 :]]

    def now(self, config: Config, number: int) -> str:
        return f"the pair {config['cuts'][number]}"


class Compose(Kind):
    number, name = 10, "Compose"
    rule = (
        "A rule `a, b -> c` says that the neighbours a, b may be replaced by c. Each step: look at the pairs of neighbours from the right "
        "end of the list to the left, and at the first pair that is the left side of a rule apply that rule, once. It is over when no pair "
        "has a rule. The state is the list of characters."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        length = draw.randint(steps + 3, max(30, steps + 3))
        count = draw.randint(max(1, steps - 5), min(length - 2, steps + 5))
        text = text_of(draw, length)
        while True:
            rules, state = [], text
            for _ in range(count):
                place = draw.randint(0, len(state) - 2)
                made = draw.choice(LETTERS)
                rules.append((state[place : place + 2], made))
                state = state[:place] + made + state[place + 2 :]
            rules += [(text_of(draw, 2), draw.choice(LETTERS)) for _ in range(count // 7 + 1)]
            if len({left for left, _ in rules}) == len(rules):
                break
        draw.shuffle(rules)
        return {"initial": list(text), "rules": dict(rules)}

    def question(self, config: Config) -> str:
        return f"{self.given(config)}\nInitial state:\n{', '.join(config['initial'])}"

    def read(self, question: str) -> Config:
        match = found(r"Rules:\n(.*)\nInitial state:\n(.*)", question)
        rules = {first + second: made for first, second, made in re.findall(r"(.), (.) -> (.)", match[1])}
        return {"initial": listed(match[2]), "rules": rules}

    def init(self, config: Config) -> Any:
        return config["initial"]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        state = states[-1]
        for place in range(len(state) - 2, -1, -1):
            made = config["rules"].get(state[place] + state[place + 1])
            if made is not None:
                return [*state[:place], made, *state[place + 2 :]]
        return None

    def given(self, config: Config) -> str:
        return "Rules:\n" + "\n".join(f"{left[0]}, {left[1]} -> {made}" for left, made in config["rules"].items())

    def now(self, config: Config, number: int) -> str:
        return "apply one rule, at the rightmost pair that has one"


class Compare(Kind):
    number, name = 13, "Compare"
    rule = (
        "Compare the target with the candidates, in order: each step takes the next candidate, and the letters that it has in common with "
        "the target from the beginning up to the first difference are the state, a text. It is over with the first candidate that is the "
        "target itself; the final state is the list of all the texts found, the target last."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        length = steps + 1
        target = text_of(draw, length)
        candidates = [target]
        for _ in range(draw.randrange(steps, steps + 10)):
            changed = draw.randint(0, length)
            candidates.append(target[0] + (target[: length - changed] + text_of(draw, changed))[1:])
        draw.shuffle(candidates)
        return {"target": target, "candidates": candidates}

    def question(self, config: Config) -> str:
        return f"Target: {config['target']}\nCandidate: {', '.join(config['candidates'])}"

    def read(self, question: str) -> Config:
        match = found(r"Target: (\w+)\nCandidate: (.*)", question)
        return {"target": match[1], "candidates": listed(match[2])}

    def init(self, config: Config) -> Any:
        return [""]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["candidates"]) or (number and isinstance(states[-1], list)):
            return None
        both = zip(config["target"], config["candidates"][number], strict=False)
        common = "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], both))
        return [*states[1:], common] if common == config["target"] else common

    def take(self, config: Config, states: list[Any], answer: Any, last: bool) -> Any:
        return [*states[1:], answer] if last and isinstance(answer, str) else answer

    def given(self, config: Config) -> str:
        return f"Target: {config['target']}"

    def now(self, config: Config, number: int) -> str:
        return f"the candidate {config['candidates'][number]}; answer with the text alone"


class FindCyclic(Kind):
    number, name = 23, "FindCyclic"
    rule = (
        "The command is a pair of a character of the string and a number, both texts. Each step goes one character to the right in the "
        "string, from its end back to its beginning, and takes 1 from the number; the new pair is the state. When the number is 0 it is "
        "over, and the character alone is the final state. The given pair itself is not among the intermediate states."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        text = "".join(draw.sample(ALNUM, min(len(ALNUM), draw.randrange(1, steps + 5))))
        return {"string": text, "command": [draw.choice(text), str(draw.randint(1, len(text)))]}

    def question(self, config: Config) -> str:
        return f"{self.given(config)}\nCommand: {config['command']}"

    def read(self, question: str) -> Config:
        match = found(r"String: (\w+)\nCommand: \['(.)', '(\d+)'\]", question)
        return {"string": match[1], "command": [match[2], match[3]]}

    def init(self, config: Config) -> Any:
        return config["command"]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if isinstance(states[-1], str):
            return None
        text, (char, left) = config["string"], states[-1]
        following = text[(text.index(char) + 1) % len(text)]
        return [following, str(int(left) - 1)] if int(left) > 1 else following

    def given(self, config: Config) -> str:
        return f"String: {config['string']}"

    def now(self, config: Config, number: int) -> str:
        return "go one character to the right"
