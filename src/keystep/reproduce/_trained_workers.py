"""Three small workers trained from scratch, behind the language-model protocol: one counts digits, one sorts, one finds a code.

Each reads the prompts of `keystep.measure.llm_algorithms.tasks`, is right most of the time on inputs of the size that it was trained on and
less and less beyond, and draws its answer at temperature 1 (keyed like every draw of the engine). Tokens are characters.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from typing import Any

import numpy as np

from keystep.errors import Refused
from keystep.lm.base import LM, Request, Sample, draw_key
from keystep.measure.llm_algorithms.tasks import COLOURS, THINGS, Counting, Retrieving, Sorting
from keystep.reproduce import torch_for

BATCH = 64
START = 101  # beside 0 … 100 hundredths: nothing written yet
COUNTED, SORTED, READ = 60, 20, 256  # the longest inputs of the training
STEPS = {"counting": 600, "sorting": 200, "retrieval": 120}
Tick = Callable[[], None]


class Worker(LM):
    """A trained net that answers one kind of prompt. `seed` decides its training."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = f"{name}-worker-{seed}", seed

    def identity(self) -> Any:
        return {"worker": self.name, "steps": STEPS[self.name.partition("-worker-")[0]]}

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        if not isinstance(request.prompt, str) or "\n" not in request.prompt:
            raise Refused("knows one prompt only", field="prompt", value=request.prompt)
        for index in range(request.first, request.first + request.n):
            generator = np.random.Generator(np.random.Philox(key=draw_key(request.seed, request.key, index)))
            question, _, given = request.prompt.partition("\n")
            text = self.answer(question, given, generator)
            yield Sample(text, index, tokens_in=len(request.prompt), tokens_out=len(text), model=self.name)

    @abstractmethod
    def answer(self, question: str, text: str, generator: np.random.Generator) -> str:
        """The answer to a prompt's two parts."""


def _train(net: Any, steps: int, batch: Callable[[], tuple[Any, Any]], tick: Tick, rate: float = 3e-3) -> None:
    """Adam on the cross-entropy of `net(*inputs)`; targets of -1 do not count."""
    import torch

    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        inputs, targets = batch()
        loss = torch.nn.functional.cross_entropy(net(*inputs).flatten(0, -2), targets.flatten(), ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        tick()
    net.eval()


def _drawn(logits: Any, generator: np.random.Generator) -> int:
    """A class by its logits, at temperature 1."""
    return int(np.argmax(np.asarray(logits, dtype=float) + generator.gumbel(size=len(logits))))


class Counter(Worker):
    """A GRU over characters with a class for every count from 0 to 60."""

    def __init__(self, seed: int, tick: Tick = lambda: None) -> None:
        super().__init__("counting", seed)
        torch_for(seed)
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.letters, self.gru, self.out = nn.Embedding(128, 16), nn.GRU(16, 64, batch_first=True), nn.Linear(64, COUNTED + 1)

            def forward(self, text: Any, lengths: Any) -> Any:
                states, _ = self.gru(self.letters(text))
                return self.out(states[torch.arange(len(text)), lengths - 1])

        self.net, task, chance = Net(), Counting(), random.Random(f"counter {seed}")

        def batch() -> tuple[Any, Any]:
            texts = [task.problem(chance.randint(1, COUNTED), chance) for _ in range(BATCH)]
            rows = [_codes(problem["text"], COUNTED) for problem in texts]
            return (torch.tensor(rows), torch.tensor([p["n"] for p in texts])), torch.tensor([p["truth"] for p in texts])

        _train(self.net, STEPS["counting"], batch, tick)

    def answer(self, question: str, text: str, generator: np.random.Generator) -> str:
        import torch

        with torch.inference_mode():
            scores = self.net(torch.tensor([_codes(text, len(text))]), torch.tensor([len(text)]))[0]
        return str(_drawn(scores, generator))


class Sorter(Worker):
    """A pointer network: given the number written last, it points at the next of those not yet written."""

    def __init__(self, seed: int, tick: Tick = lambda: None) -> None:
        super().__init__("sorting", seed)
        torch_for(seed)
        import torch
        from torch import nn

        class Net(nn.Module):
            order: torch.Tensor

            def __init__(self) -> None:
                super().__init__()
                width = 64
                steps = (torch.arange(START + 1)[:, None] >= torch.arange(START + 1)[None, :]).float()
                self.register_buffer("order", steps)  # how large a number is
                self.key = nn.Sequential(nn.Linear(START + 1, width), nn.ReLU(), nn.Linear(width, width))
                self.query = nn.Sequential(nn.Linear(START + 1, width), nn.ReLU(), nn.Linear(width, width))

            def forward(self, given: Any, last: Any, gone: Any) -> Any:
                scores = self.query(self.order[last]) @ self.key(self.order[given]).transpose(1, 2)
                return scores.masked_fill(gone, -1e9)

        self.net, task, chance = Net(), Sorting(), random.Random(f"sorter {seed}")

        def batch() -> tuple[Any, Any]:
            size = chance.randint(1, SORTED)
            given = torch.tensor([_hundredths(task.problem(size, chance)["numbers"]) for _ in range(BATCH)])
            rising, places = torch.sort(given, dim=1, stable=True)
            last = torch.cat([torch.full((BATCH, 1), START), rising[:, :-1]], dim=1)
            turn = torch.empty_like(places).scatter_(1, places, torch.arange(size).expand(BATCH, size))  # when each is written
            return (given, last, turn[:, None, :] < torch.arange(size)[None, :, None]), places

        _train(self.net, STEPS["sorting"], batch, tick)
        with torch.inference_mode():  # a score is of two numbers, so all of them make a table
            self.scores = (self.net.query(self.net.order) @ self.net.key(self.net.order).T).double().numpy()

    def answer(self, question: str, text: str, generator: np.random.Generator) -> str:
        numbers = _hundredths([float(number) for number in text.strip("[]").split(",")])
        left, last, found = np.array(numbers), START, list[int]()
        while len(left):
            place = _drawn(self.scores[last, left], generator)
            last, left = int(left[place]), np.delete(left, place)
            found.append(last)
        return f"[{', '.join(f'{number / 100:.2f}' for number in found)}]"


class Retriever(Worker):
    """Convolutions over characters that point at where the code begins, or at nothing."""

    def __init__(self, seed: int, tick: Tick = lambda: None) -> None:
        super().__init__("retrieval", seed)
        torch_for(seed)
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                width = 32
                self.letters, self.asked = nn.Embedding(128, width), nn.Embedding(len(COLOURS) * len(THINGS), width)
                self.layers = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2 * gap, dilation=gap) for gap in (1, 2, 4, 8))
                self.point, self.nothing = nn.Linear(width, 1), nn.Linear(width, 1)

            def forward(self, text: Any, target: Any) -> Any:
                asked = self.asked(target)[:, :, None]
                inside = self.letters(text).transpose(1, 2)
                for layer in self.layers:
                    inside = inside + torch.relu(layer(inside) * (1 + asked) + asked)
                places = self.point(inside.transpose(1, 2))[:, :, 0].masked_fill(text == 0, -1e9)
                return torch.cat([places, self.nothing(inside.amax(dim=2))], dim=1)[:, None]

        self.net, task, chance = Net(), Retrieving(), random.Random(f"retriever {seed}")

        def batch() -> tuple[Any, Any]:
            rows, targets, due = list[list[int]](), list[int](), list[int]()
            while len(rows) < BATCH:
                size = chance.randint(100, READ)
                problem = task.problem(1000, chance)
                wanted = bool(len(rows) % 2)
                parts = [part for part in task.parts(problem, size) if part["present"] is wanted]
                if not parts:
                    continue
                text = chance.choice(parts)["text"]
                rows.append(_codes(text, READ))
                targets.append(_object(problem["target"]))
                due.append(text.index(problem["truth"]) if wanted else READ)
            return (torch.tensor(rows), torch.tensor(targets)), torch.tensor(due)

        _train(self.net, STEPS["retrieval"], batch, tick)

    def answer(self, question: str, text: str, generator: np.random.Generator) -> str:
        import torch

        name = question.partition("code of the ")[2].partition("?")[0]
        with torch.inference_mode():
            scores = self.net(torch.tensor([_codes(text, len(text))]), torch.tensor([_object(name)]))[0, 0]
        place = _drawn(scores, generator)
        return "unknown" if place == len(text) else text[place : place + 6]


def _codes(text: str, length: int) -> list[int]:
    return [*(min(ord(character), 127) for character in text), *[0] * (length - len(text))]


def _hundredths(numbers: list[float]) -> list[int]:
    return [round(100 * number) for number in numbers]


def _object(name: str) -> int:
    colour, thing = name.split(" ")
    return COLOURS.index(colour) * len(THINGS) + THINGS.index(thing)
