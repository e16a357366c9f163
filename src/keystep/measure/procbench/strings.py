"""The tasks whose state is a text or a number."""

from __future__ import annotations

import random
import re
from typing import Any

from keystep.measure.procbench.kind import ALNUM, LETTERS, Config, Kind, found, listed, pairs, text_of


class Sort(Kind):
    number, name = 1, "Sort"
    rule = (
        "Sort the letters of the string alphabetically by swaps. Each step: go to the first place whose letter is not the smallest of the "
        "letters from there to the end, and swap it with the first letter to the right of it that is that smallest letter. Places that are "
        "right already make no step. The state is the whole string."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        return {"string": text_of(draw, draw.randint(5, 50))}

    def question(self, config: Config) -> str:
        return f"String: {config['string']}"

    def read(self, question: str) -> Config:
        return {"string": found(r"String: ([a-z]+)", question)[1]}

    def init(self, config: Config) -> Any:
        return config["string"]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        state = states[-1]
        for place, letter in enumerate(state):
            least = min(state[place:])
            if letter != least:
                other = state.index(least, place)
                return f"{state[:place]}{least}{state[place + 1 : other]}{letter}{state[other + 1 :]}"
        return None

    def now(self, config: Config, number: int) -> str:
        return "make the next swap"


class Gather(Kind):
    number, name = 2, "Gather"
    rule = (
        "Start with an empty text. For every set of numbers (N, i, n), in order, take string number N (counted from 0), and of it the n "
        "characters from position i on (counted from 0), and append them to the text. The state is the text so far."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        strings = [text_of(draw, draw.randint(5, 10), ALNUM) for _ in range(draw.randint(2, 20))]
        sets = []
        for _ in range(steps):
            which = draw.randrange(len(strings))
            first = draw.randrange(len(strings[which]))
            sets.append((which, first, draw.randint(1, len(strings[which]) - first)))
        return {"strings": strings, "sets": sets}

    def question(self, config: Config) -> str:
        return f"Strings: [{', '.join(config['strings'])}]\nSets of Numbers: [{', '.join(map(_tuple, config['sets']))}]"

    def read(self, question: str) -> Config:
        match = found(r"Strings: \[(.*)\]\nSets of Numbers: \[(.*)\]", question)
        return {"strings": listed(match[1]), "sets": pairs(match[2])}

    def init(self, config: Config) -> Any:
        return ""

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["sets"]):
            return None
        which, first, count = config["sets"][number]
        return states[-1] + config["strings"][which][first : first + count]

    def given(self, config: Config) -> str:
        return f"Strings: [{', '.join(config['strings'])}]"

    def now(self, config: Config, number: int) -> str:
        return f"the set of numbers {_tuple(config['sets'][number])}"


class Copy(Kind):
    number, name = 5, "Copy"
    rule = (
        "Start with an empty text. For every index, in order, append the string with that number (counted from 0) to the text. The state "
        "is the text so far."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        strings = [text_of(draw, draw.randint(5, 20), ALNUM) for _ in range(draw.randint(3, 25))]
        return {"strings": strings, "indices": [draw.randrange(len(strings)) for _ in range(steps)]}

    def question(self, config: Config) -> str:
        return f"Strings: [{', '.join(config['strings'])}]\nIndices: {config['indices']}"

    def read(self, question: str) -> Config:
        match = found(r"Strings: \[(.*)\]\nIndices: \[(.*)\]", question)
        return {"strings": listed(match[1]), "indices": [int(part) for part in listed(match[2])]}

    def init(self, config: Config) -> Any:
        return ""

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        return None if number == len(config["indices"]) else states[-1] + config["strings"][config["indices"][number]]

    def given(self, config: Config) -> str:
        return f"Strings: [{', '.join(config['strings'])}]"

    def now(self, config: Config, number: int) -> str:
        return f"index {config['indices'][number]}"


class Substitute(Kind):
    number, name = 6, "Substitute"
    rule = (
        "Go through the string from left to right, one character a step. Where the character is the first of one of the pairs, put that "
        "pair's second in its place; else leave it. What has been put in is not looked at again. Every position is a step, also one that "
        "changes nothing. The state is the whole string."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        text = text_of(draw, steps, ALNUM)
        pool, table = ALNUM, {}
        for char in draw.sample(sorted(set(text)), len(set(text))):
            pool = pool.replace(char, "")
            table[char] = draw.choice(pool)
        return {"string": text, "table": table}

    def question(self, config: Config) -> str:
        return f"{self.given(config)}\nString:\n{config['string']}"

    def read(self, question: str) -> Config:
        match = found(r"Pairs:\n(.*)\nString:\n([a-z0-9]+)", question)
        return {"string": match[2], "table": dict(re.findall(r"\((.), (.)\)", match[1]))}

    def init(self, config: Config) -> Any:
        return config["string"]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["string"]):
            return None
        state, char = states[-1], config["string"][number]
        return state[:number] + config["table"].get(char, char) + state[number + 1 :]

    def given(self, config: Config) -> str:
        return "Pairs:\n" + "\n".join(f"({char}, {other})" for char, other in config["table"].items())

    def now(self, config: Config, number: int) -> str:
        return f"character number {number}, counted from 0"


class Decompose(Kind):
    number, name = 11, "Decompose"
    rule = (
        "A rule `a -> bc` says that the character a may be replaced by the two characters bc. Each step: find the leftmost character of "
        "the string that has a rule, and replace it. It is over when no character has a rule. The state is the whole string."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        count = draw.randint(2, max(2, min(23, steps)))
        text = text_of(draw, draw.randint(steps + 5, steps + 15))
        while len(set(text)) < count:
            text = text_of(draw, len(text))
        keys = draw.sample(sorted(set(text)), count)
        rest = sorted(set(LETTERS) - set(keys))
        return {"characters": text, "rules": {key: "".join(draw.choices(rest, k=2)) for key in keys}}

    def question(self, config: Config) -> str:
        return f"characters: {config['characters']}\n{self.given(config)}"

    def read(self, question: str) -> Config:
        match = found(r"characters: ([a-z]+)\nrules:\n(.*)", question)
        return {"characters": match[1], "rules": dict(re.findall(r"(.) -> (..)", match[2]))}

    def init(self, config: Config) -> Any:
        return config["characters"]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        state = states[-1]
        place = next((place for place, char in enumerate(state) if char in config["rules"]), None)
        return None if place is None else state[:place] + config["rules"][state[place]] + state[place + 1 :]

    def given(self, config: Config) -> str:
        return "rules:\n" + "\n".join(f"{char} -> {pair}" for char, pair in config["rules"].items())

    def now(self, config: Config, number: int) -> str:
        return "replace the leftmost character that has a rule"


class Rhythm(Kind):
    number, name = 12, "Rhythm"
    rule = (
        "Start with an empty text. Each step appends two characters: the next element of sequence 1 and then the next element of sequence "
        "2. A sequence that has come to its end starts again from its beginning. Do N steps. The state is the text so far."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        first = [draw.randint(0, 9) for _ in range(draw.randrange(4, 7))]
        letters = LETTERS[: draw.randrange(2, 6)]
        return {"first": first, "second": draw.choices(letters, k=8), "n": steps}

    def question(self, config: Config) -> str:
        return f"{self.given(config)}\nN: {config['n']}"

    def read(self, question: str) -> Config:
        match = found(r"Sequence 1: ([\d, ]+)\nSequence 2: ([a-z, ]+)\nN: (\d+)", question)
        return {"first": [int(part) for part in listed(match[1])], "second": listed(match[2]), "n": int(match[3])}

    def init(self, config: Config) -> Any:
        return ""

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        first, second = config["first"], config["second"]
        return None if number == config["n"] else f"{states[-1]}{first[number % len(first)]}{second[number % len(second)]}"

    def given(self, config: Config) -> str:
        return f"Sequence 1: {', '.join(map(str, config['first']))}\nSequence 2: {', '.join(config['second'])}"

    def now(self, config: Config, number: int) -> str:
        return f"step {number + 1} of {config['n']}"


class Decode(Kind):
    number, name = 15, "Decode"
    rule = (
        "Start with an empty text. Every piece `AxB`, in order, appends the character A to the text B times. The state is the text so far."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        bit = draw.randint(0, 1)
        return {"pieces": [f"{(bit + place) % 2}x{draw.randint(1, 9)}" for place in range(steps)]}

    def question(self, config: Config) -> str:
        return f"Sentence: {' '.join(config['pieces'])}"

    def read(self, question: str) -> Config:
        return {"pieces": found(r"Sentence: ((?:.x\d+ ?)+)", question)[1].split()}

    def init(self, config: Config) -> Any:
        return ""

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["pieces"]):
            return None
        char, _, times = config["pieces"][number].partition("x")
        return states[-1] + char * int(times)

    def now(self, config: Config, number: int) -> str:
        return f"the piece {config['pieces'][number]}"


class PushPop(Kind):
    number, name = 16, "PushPop"
    rule = (
        "Carry the actions out on the string, in order: pop_left removes its first character and pop_right its last (an empty string stays "
        "empty), push_left(A) puts A before it and push_right(A) behind it. The state is the string."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        kinds = draw.choices(("push_left", "push_right", "pop_right", "pop_left"), k=steps)
        actions = [f"{kind}({draw.choice(LETTERS)})" if "push" in kind else kind for kind in kinds]
        return {"string": text_of(draw, steps), "actions": actions}  # in the published problems the string is as long as the list

    def question(self, config: Config) -> str:
        return f"Initial string: {config['string']}\nActions: {', '.join(config['actions'])}"

    def read(self, question: str) -> Config:
        match = found(r"Initial string: ([a-z]*)\nActions: (.*)", question)
        actions = listed(match[2])
        for action in actions:
            found(r"pop_(?:left|right)|push_(?:left|right)\(.\)", action)
        return {"string": match[1], "actions": actions}

    def init(self, config: Config) -> Any:
        return config["string"]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["actions"]):
            return None
        action, state = config["actions"][number], states[-1]
        if action.startswith("pop"):
            return state[1:] if action == "pop_left" else state[:-1]
        return action[-2] + state if action.startswith("push_left") else state + action[-2]

    def now(self, config: Config, number: int) -> str:
        return f"the action {config['actions'][number]}"


class Rotate(Kind):
    number, name = 17, "Rotate"
    rule = (
        "Each pair (m, n), in order, names a piece of the string: from position m up to but not including position n, counted from 0. The "
        "last character of that piece goes to its front, so that the others move one place to the right. The state is the whole string."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        text = text_of(draw, draw.randrange(5, 15))
        spans = []
        for _ in range(steps):
            last = draw.randint(1, len(text) - 1)
            spans.append((0 if last == 1 else draw.randint(0, last - 2), last + 1))
        return {"string": text, "spans": spans}

    def question(self, config: Config) -> str:
        return f"String:\n{config['string']}\nIndices:\n{', '.join(map(_tuple, config['spans']))}"

    def read(self, question: str) -> Config:
        match = found(r"String:\n(\w+)\nIndices:\n(.*)", question)
        return {"string": match[1], "spans": pairs(match[2])}

    def init(self, config: Config) -> Any:
        return config["string"]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["spans"]):
            return None
        (start, end), state = config["spans"][number], states[-1]
        return state[:start] + state[end - 1] + state[start : end - 1] + state[end:]

    def now(self, config: Config, number: int) -> str:
        return f"the pair {_tuple(config['spans'][number])}"


class DeleteChar(Kind):
    number, name = 19, "DeleteChar"
    rule = "For every character listed, in order, delete its first occurrence from the string. The state is what is left of the string."

    def draw(self, draw: random.Random, steps: int) -> Config:
        text = text_of(draw, draw.randint(steps + 1, max(30, steps + 1)))
        return {"string": text, "chars": draw.sample(list(text), steps)}

    def question(self, config: Config) -> str:
        steps = "\n".join(f"{place}. {char}" for place, char in enumerate(config["chars"], 1))
        return f"String: {config['string']}\nSteps: \n{steps}"

    def read(self, question: str) -> Config:
        match = found(r"String: (\w+)\nSteps: ?\n(.*)", question)
        return {"string": match[1], "chars": re.findall(r"^\d+\. (.)$", match[2], re.MULTILINE)}

    def init(self, config: Config) -> Any:
        return config["string"]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        return None if number == len(config["chars"]) else states[-1].replace(config["chars"][number], "", 1)

    def now(self, config: Config, number: int) -> str:
        return f"delete the first {config['chars'][number]}"


class Cumulate(Kind):
    number, name = 21, "Cumulate"
    rule = "Start with the number N and carry the operations out on it, in order. The state is the number."

    def draw(self, draw: random.Random, steps: int) -> Config:
        kinds = draw.choices(("Add", "Multiply"), k=steps)
        return {
            "n": draw.randint(1, 9),
            "operations": [f"{kind} {draw.randint(1, 5) if kind == 'Multiply' else draw.randint(0, 9)}" for kind in kinds],
        }

    def question(self, config: Config) -> str:
        return f"N = {config['n']}\nOperations: [{', '.join(config['operations'])}]"

    def read(self, question: str) -> Config:
        match = found(r"N = (-?\d+)\nOperations: \[(.*)\]", question)
        operations = listed(match[2])
        for operation in operations:
            found(r"(?:Add|Multiply) \d+", operation)
        return {"n": int(match[1]), "operations": operations}

    def init(self, config: Config) -> Any:
        return config["n"]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["operations"]):
            return None
        kind, _, value = config["operations"][number].partition(" ")
        return states[-1] + int(value) if kind == "Add" else states[-1] * int(value)

    def now(self, config: Config, number: int) -> str:
        return str(config["operations"][number])


class MoveCyclic(Kind):
    number, name = 22, "MoveCyclic"
    rule = (
        "The array is a row of - with one x in it. Every operation (direction, distance), in order, moves the x by that many places; where "
        "it leaves the row on one side it comes in again on the other. The state is the whole row."
    )

    def draw(self, draw: random.Random, steps: int) -> Config:
        width = 5 * draw.randint(1, 10)
        row = _row(draw.randrange(width), width)
        return {"row": row, "moves": [(draw.choice(("right", "left")), draw.randint(1, width)) for _ in range(steps)]}

    def question(self, config: Config) -> str:
        moves = ",".join(f"\n ({side}, {distance})" for side, distance in config["moves"])
        return f"Initial array:\n{config['row']}\nOperations: [{moves}\n]"

    def read(self, question: str) -> Config:
        match = found(r"Initial array:\n(-*x-*)\nOperations: \[(.*)\]", question)
        return {"row": match[1], "moves": [(side, int(far)) for side, far in re.findall(r"\((left|right), (\d+)\)", match[2])]}

    def init(self, config: Config) -> Any:
        return config["row"]

    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        if number == len(config["moves"]):
            return None
        side, distance = config["moves"][number]
        width = len(config["row"])
        return _row((states[-1].index("x") + (distance if side == "right" else -distance)) % width, width)

    def now(self, config: Config, number: int) -> str:
        side, distance = config["moves"][number]
        return f"the operation ({side}, {distance})"


def _row(place: int, width: int) -> str:
    return "-" * place + "x" + "-" * (width - place - 1)


def _tuple(numbers: Any) -> str:
    return f"({', '.join(map(str, numbers))})"
