"""Patches as skills of one model: each step that names a skill is answered with its patch in, and the patch is out again for the next.

The model is in memory once however many skills it has, and what one skill was tuned on cannot be forgotten for another's sake: continual
learning with the task known, as in the paper. Covers a model on this machine (`keystep.lm.local.Local`); steps that want different patches
wait for one another.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterable, Mapping
from hashlib import blake2b
from typing import Any

import torch

from keystep.edit.localize.patch import Patch
from keystep.errors import BadInput
from keystep.lm.base import LM, Request, Sample
from keystep.lm.local import Local
from keystep.run.skills import PromptSkill
from keystep.skill import SkillLibrary


class Shelf:
    """A model and patches made for it, one of which (or none) is in at a time.

    Raises:
        BadInput: a patch was not made for this model, or two have the same name.
    """

    def __init__(self, local: Local, patches: Iterable[Patch]) -> None:
        self.local, self.patches, self._in = local, dict[str, Patch](), ""
        self._lock: tuple[Any, asyncio.Lock] | None = None
        for patch in patches:
            if not patch.name or patch.name in self.patches:
                raise BadInput("is the name of no patch or of two", field="patches", value=patch.name, mend="give every patch its own")
            patch.check(local.model)
            self.patches[patch.name] = patch

    def switch(self, name: str) -> None:
        """The patch of this name in, and no other; "" takes all out."""
        if name != self._in:
            if self._in:
                self.patches[self._in].revert(self.local.model)
                self._in = ""
            if name:
                self.patches[name].apply(self.local.model)
            self._in = name

    def lock(self) -> asyncio.Lock:
        """Of the running loop: a shelf may serve one run after another."""
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock[0] is not loop:
            self._lock = loop, asyncio.Lock()
        return self._lock[1]

    def lm(self, name: str) -> LM:
        """The model with a patch in, as a language model of keystep.

        Raises:
            BadInput: there is no such patch.
        """
        if name not in self.patches:
            raise BadInput("is no patch of this shelf", field="patch", value=name, mend=f"there are: {', '.join(sorted(self.patches))}")
        return _Patched(self, name)

    def library(
        self,
        prompt: str = "{{ inputs.prompt }}",
        *,
        sampling: Mapping[str, Any] | None = None,
        descriptions: Mapping[str, str] | None = None,
    ) -> SkillLibrary:
        """A skill a patch, under its name; cheaper the fewer parameters it changes.

        Args:
            prompt: the template that a step's inputs are put into.
            sampling: as of `PromptSkill`; greedy where it says nothing.
            descriptions: by name of the patch, for `SkillLibrary.search`.
        """
        asked = {"temperature": 0.0, **(sampling or {})}
        told = descriptions or {}
        return SkillLibrary(
            PromptSkill(name, prompt, lm=self.lm(name), sampling=asked, description=told.get(name, ""), cost=1.0 + patch.density)
            for name, patch in self.patches.items()
        )


class _Patched(LM):
    def __init__(self, shelf: Shelf, patch: str) -> None:
        self.shelf, self.patch = shelf, patch
        self.name = f"{shelf.local.name}+{patch}"

    def identity(self) -> Any:
        return {"model": self.shelf.local.identity(), "patch": digest(self.shelf.patches[self.patch])}

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        async with self.shelf.lock():
            self.shelf.switch(self.patch)
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
