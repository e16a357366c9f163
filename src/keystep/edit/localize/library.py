"""Patches as skills of one model: each step that names a skill is answered with its patches in, and they are out again for the next.

The model is in memory once however many skills it has, and what one skill was tuned on cannot be forgotten for another's sake: continual
learning with the task known, as in the paper. Covers a model on this machine (`keystep.lm.local.Local`); steps that want different patches
wait for one another.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from keystep.edit.localize.patch import Patch
from keystep.errors import BadInput
from keystep.files import whole
from keystep.lm.base import LM, Request, Sample
from keystep.lm.local import Local
from keystep.run.skills import PromptSkill
from keystep.skill import SkillLibrary

SHELF = "shelf.json"


class Shelf:
    """A model and patches made for it, of which those that a skill needs are in at a time.

    A patch may have been made on top of another one (`on`), by tuning the model with that one in and grafting what this changed: then the
    other goes in before it. That is continual learning as in the paper, where the task is known when it is asked for.

    Raises:
        BadInput: as `add`.
    """

    def __init__(self, local: Local, patches: Iterable[Patch] = ()) -> None:
        self.local, self.patches, self._on = local, dict[str, Patch](), dict[str, str]()
        self._in: tuple[str, ...] = ()  # in the order they were put in
        self._lock: tuple[Any, asyncio.Lock] | None = None
        for patch in patches:
            self.add(patch)

    def add(self, patch: Patch, *, on: str = "") -> None:
        """One more patch, made for the model or, where `on` names one of the shelf, for the model with that one in.

        Raises:
            BadInput: the shelf has a patch of this name already or none of the name `on`, or the patch was made for something else.
        """
        if not patch.name or patch.name in self.patches:
            raise BadInput("is the name of no patch or of two", field="patches", value=patch.name, mend="give every patch its own")
        before = self._in
        self._put_in(self.chain(on) if on else ())
        try:
            patch.check(self.local.model)
        finally:
            self._put_in(before)
        self.patches[patch.name], self._on[patch.name] = patch, on

    def remove(self, name: str) -> None:
        """Without this patch.

        Raises:
            BadInput: there is no such patch, or another one was made on top of it.
        """
        above = next((other for other, on in self._on.items() if on == name), None)
        if above is not None:
            raise BadInput(f"has the patch {above!r} on top", field="patch", value=name, mend="remove that one before")
        self.chain(name)
        if name in self._in:
            self._put_in(())
        del self.patches[name], self._on[name]

    def chain(self, *names: str) -> tuple[str, ...]:
        """These patches and those that they were made on, in the order in which they go in, each once.

        Raises:
            BadInput: there is no such patch.
        """
        found: list[str] = []
        for name in names:
            if name not in self.patches:
                raise BadInput("is no patch of this shelf", field="patch", value=name, mend=f"there are: {', '.join(sorted(self.patches))}")
            below = self.chain(self._on[name]) if self._on[name] else ()
            found += [each for each in (*below, name) if each not in found]
        return tuple(found)

    def switch(self, *names: str) -> None:
        """These patches in, with what they were made on, and no other; without a name all are out.

        Raises:
            BadInput: there is no such patch, or two of them want different values at one place; none is in then.
        """
        self._put_in(self.chain(*names))

    def _put_in(self, wanted: tuple[str, ...]) -> None:
        if wanted[: len(self._in)] != self._in:  # patches may share places: what is reverted is reverted down to the base
            for name in reversed(self._in):
                self.patches[name].revert(self.local.model)
            self._in = ()
        try:
            for name in wanted[len(self._in) :]:
                self.patches[name].apply(self.local.model)
                self._in = (*self._in, name)
        except BadInput:
            self._put_in(())
            raise

    def lock(self) -> asyncio.Lock:
        """Of the running loop: a shelf may serve one run after another."""
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock[0] is not loop:
            self._lock = loop, asyncio.Lock()
        return self._lock[1]

    def lm(self, *names: str) -> LM:
        """The model with patches in, as a language model of keystep.

        Raises:
            BadInput: there is no such patch.
        """
        self.chain(*names)
        return _Patched(self, names)

    def library(
        self,
        prompt: str = "{{ inputs.prompt }}",
        *,
        sampling: Mapping[str, Any] | None = None,
        descriptions: Mapping[str, str] | None = None,
        together: Mapping[str, Sequence[str]] | None = None,
    ) -> SkillLibrary:
        """A skill a patch, under its name; cheaper the fewer parameters it changes.

        Args:
            prompt: the template that a step's inputs are put into.
            sampling: as of `PromptSkill`; greedy where it says nothing.
            descriptions: by name of the skill, for `SkillLibrary.search`.
            together: skills that want several patches in, by name.
        """
        asked = {"temperature": 0.0, **(sampling or {})}
        told = descriptions or {}
        skills = {name: (name,) for name in self.patches} | {name: tuple(names) for name, names in (together or {}).items()}
        return SkillLibrary(
            PromptSkill(name, prompt, lm=self.lm(*names), sampling=asked, description=told.get(name, ""),
                        cost=1.0 + sum(self.patches[each].density for each in self.chain(*names)))
            for name, names in skills.items()
        )  # fmt: skip

    def save(self, folder: Path) -> None:
        """A file a patch, and `shelf.json` with what is on top of what.

        Raises:
            BadInput: something stands there already, or it cannot be written.
        """
        with whole(folder) as part:
            part.mkdir()
            listed = []
            for number, (name, patch) in enumerate(self.patches.items()):
                file = f"{number:03}.safetensors"
                patch.save(part / file)
                listed.append({"name": name, "file": file, "on": self._on[name]})
            (part / SHELF).write_text(json.dumps({"patches": listed}, indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, local: Local, folder: Path) -> Shelf:
        """What `save` wrote, for the same model.

        Raises:
            BadInput: it is no shelf, one of its patches is broken, or they were made for another model.
        """
        try:
            listed = json.loads((folder / SHELF).read_text("utf-8"))["patches"]
            rows = [(str(row["name"]), str(row["file"]), str(row["on"])) for row in listed]
            if any(Path(file).name != file for _, file, _ in rows):
                raise ValueError("a file is not beside it")
        except (OSError, ValueError, KeyError, TypeError) as error:
            mend = "give a folder that Shelf.save wrote"
            raise BadInput(f"has no {SHELF} that can be read ({error})", field="shelf", value=str(folder), mend=mend) from None
        found = cls(local)
        for name, file, on in rows:
            patch = Patch.load(folder / file)
            if patch.name != name:
                raise BadInput(
                    f"holds the patch {patch.name!r}, not {name!r}", field="shelf", value=str(folder / file), mend="save it again"
                )
            found.add(patch, on=on)
        return found


class _Patched(LM):
    def __init__(self, shelf: Shelf, names: tuple[str, ...]) -> None:
        self.shelf, self.names = shelf, names
        self.name = "+".join((shelf.local.name, *names))

    def identity(self) -> Any:
        shelf = self.shelf
        return {"model": shelf.local.identity(), "patches": [digest(shelf.patches[name]) for name in shelf.chain(*self.names)]}

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        async with self.shelf.lock():
            self.shelf.switch(*self.names)
            async for sample in self.shelf.local.sample(request):
                yield sample

    async def close(self) -> None:
        """The model is the shelf's, and others use it."""


def digest(patch: Patch) -> str:
    """A hash of what a patch changes."""
    found = blake2b(digest_size=16)
    for name, part in sorted(patch.parts.items()):
        found.update(f"{name} {part.values.dtype} {math.prod(patch.shapes[name])}".encode() + part.indices.numpy().tobytes())
        found.update(part.values.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
