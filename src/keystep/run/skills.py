"""The kinds of Skill that come with keystep: a prompt, a tool, a policy. Any other is a subclass of `keystep.Skill`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from keystep.errors import BadInput, MissingExtra
from keystep.lm.base import LM, Message, Prompt, draw_key
from keystep.run.ask import Parse, Sampling, plain
from keystep.run.flags import RedFlag
from keystep.run.procedure_file import AnswerForm, reader
from keystep.run.run import Context
from keystep.run.templates import check_syntax, render
from keystep.run.vote import Rule
from keystep.skill import Skill

Policy = Callable[[Any, Mapping[str, Any]], Any]  # (observation, inputs) -> action, or an awaitable of it


class PromptSkill(Skill):
    """Asks a model, by vote.

    Args:
        prompt: a template of the sandboxed language over `inputs` and `instruction` (the step's), or several wordings of it that the votes
            rotate over.
        parse: what the answer is in the model's text: None takes the whole text; a regular expression, its last match (named groups make
            a mapping, one group or none a text); a JSON schema (a dict), the whole text as JSON that follows it, and the model is told the
            schema; a function of the text that raises `Flag` where it is malformed.
        system: a system message.
        vote, lm, flags: in place of the run's.
        sampling: fields of `Sampling` that differ from the run's.
    """

    def __init__(
        self, name: str, prompt: str | Sequence[str], parse: str | Mapping[str, Any] | Parse | None = None, *, system: str | None = None,
        vote: Rule | None = None, lm: LM | None = None, flags: Iterable[RedFlag] | None = None, sampling: Mapping[str, Any] | None = None,
        description: str = "", cost: float = 1.0, can: Iterable[str] = (), takes: Any = None, gives: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(name, description=description, cost=cost, can=can, takes=takes, gives=gives)
        self.prompt, self.system, self.parse = [prompt] if isinstance(prompt, str) else list(prompt), system, parse
        if not self.prompt:
            raise BadInput("needs at least one wording", field=f"skill {name}.prompt")
        for text in self.prompt:
            check_syntax(text, f"skill {name}.prompt", expression=False)
        known = Sampling.__slots__
        for option in sampling or {}:
            if option not in known:
                mend = f"known are {', '.join(known)}"
                raise BadInput("is not an option of sampling", field=f"skill {name}.sampling", value=option, mend=mend)
        self.changes: dict[str, Any] = dict(sampling or {})
        self._read: Parse = plain
        if isinstance(parse, str):
            self._read = reader(AnswerForm(regex=parse))
        elif isinstance(parse, Mapping):
            self._read = reader(AnswerForm(schema=dict(parse)))
            self.changes.setdefault("schema", dict(parse))
        elif parse is not None:
            self._read = parse
        self.changes |= {key: value for key, value in (("vote", vote), ("lm", lm)) if value is not None}
        if flags is not None:
            self.changes["flags"] = tuple(flags)

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> Any:
        names = {"inputs": dict(inputs), "instruction": ctx.step.instruction if ctx.step else ""}
        wordings: list[Prompt] = []
        for text in self.prompt:
            prompt = render(text, names, f"skill {self.name}.prompt")
            wordings.append(prompt if self.system is None else (Message("system", self.system), Message("user", prompt)))
        return (await ctx.ask(wordings, parse=self._read, **self.changes)).value

    def identity(self) -> dict[str, Any]:
        parse = _code(self.parse) if callable(self.parse) else self.parse
        changes: dict[str, Any] = {key: repr(value) for key, value in self.changes.items() if key not in ("lm", "flags")}
        if "lm" in self.changes:
            changes["lm"] = self.changes["lm"].identity()
        if "flags" in self.changes:
            changes["flags"] = [_code(flag) if inspect.isfunction(flag) else repr(flag) for flag in self.changes["flags"]]
        return super().identity() | {"prompt": self.prompt, "system": self.system, "parse": parse, **changes}


class ToolSkill(Skill):
    """Calls a Python function with the inputs as keyword arguments; one that is not async runs in a thread.

    A step that was killed between the tool's work and the journal's row calls its tool again when it is resumed. For a tool that changes
    something outside there is `effect`: its intent is journaled before it is called and its outcome after (`Context.effect`), so it is
    known what is in doubt, and it happens at least once, or exactly once where the tool can tell a repetition by its key.

    Args:
        key: the keyword argument that gets the idempotency key, a text that is the same whenever this call is repeated.
        effect: whether the function changes something outside.
        happened: of an effect in doubt, `happened(key=…, **inputs)` gives the outcome it had, or None where it has not happened.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], *, key: str | None = None, effect: bool = False,
        happened: Callable[..., Any] | None = None, description: str = "", cost: float = 0.0, can: Iterable[str] = (), takes: Any = None,
        gives: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(name, description=description or inspect.getdoc(function) or "", cost=cost, can=can, takes=takes, gives=gives)
        if happened is not None and not effect:
            raise BadInput("is for a tool with an effect", field=f"skill {name}.happened", mend="add effect=True")
        self.function, self.key, self.effect, self.happened = function, key, effect, happened

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> Any:
        given = {str(name): value for name, value in inputs.items()}

        async def do(key: str) -> Any:
            return await _called(self.function, given if self.key is None else {**given, self.key: key})

        if not self.effect:
            return await do(f"{ctx.run.id}/{ctx.path}")
        check = self.happened
        return await ctx.effect(do, happened=None if check is None else lambda key: _called(check, {**given, self.key or "key": key}))

    def identity(self) -> dict[str, Any]:
        return super().identity() | _code(self.function) | ({"effect": True} if self.effect else {})


class PolicySkill(Skill):
    """Steps a Gymnasium environment by a policy until the episode ends, or for `max_steps`.

    The environment's reset is seeded by the run's seed and the step's address. What it gives: `steps`, `return` (the sum of rewards),
    `terminated`, `truncated`, `success` and `info` (the numbers and texts of the last info). It is done when `success` is true: that is
    `success(result)` where given, else the last info's "success" or "is_success", else `terminated`.

    Args:
        make_env: a function of the inputs that makes the environment, or the id of a registered one.
        policy: `policy(observation, inputs) -> action`, async or not.
        make_policy: in place of `policy`, `make_policy(inputs, seed)` that makes one for an episode, for policies with a memory or chance.
    """

    def __init__(
        self, name: str, make_env: str | Callable[[Mapping[str, Any]], Any], policy: Policy | None = None, *,
        make_policy: Callable[[Mapping[str, Any], int], Policy] | None = None, max_steps: int = 1000,
        success: Callable[[dict[str, Any]], bool] | None = None, description: str = "", cost: float = 0.0, can: Iterable[str] = (),
        takes: Any = None, gives: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(name, description=description, cost=cost, can=can, takes=takes, gives=gives)
        if (policy is None) == (make_policy is None):
            raise BadInput("give one of policy and make_policy", field=f"skill {name}")
        if max_steps < 1:
            raise BadInput("is at least 1", field=f"skill {name}.max_steps", value=max_steps)
        self.make_env, self.policy, self.make_policy, self.max_steps, self.success = make_env, policy, make_policy, max_steps, success

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
        seed = draw_key(ctx.seed, ctx.path) % 2**31
        act = self.make_policy(inputs, seed) if self.make_policy is not None else self.policy
        assert act is not None
        env = _registered(self.make_env) if isinstance(self.make_env, str) else self.make_env(inputs)
        steps, total, terminated, truncated = 0, 0.0, False, False
        try:
            observation, info = env.reset(seed=seed)
            while steps < self.max_steps and not terminated and not truncated:
                action = act(observation, inputs)
                if isinstance(action, Awaitable):
                    action = await action
                observation, reward, terminated, truncated, info = env.step(action)
                steps, total = steps + 1, total + float(reward)
                await asyncio.sleep(0)  # others have their turn
        finally:
            env.close()
        result = {"steps": steps, "return": total, "terminated": bool(terminated), "truncated": bool(truncated), "info": _scalars(info)}
        if self.success is not None:
            result["success"] = bool(self.success(result))
        else:
            result["success"] = bool(info.get("success", info.get("is_success", terminated)))
        return result

    def done(self, output: Any) -> bool:
        return bool(output["success"])

    def identity(self) -> dict[str, Any]:
        parts = {"env": self.make_env, "policy": self.policy or self.make_policy, "success": self.success}
        code = {name: _code(part) if callable(part) else part for name, part in parts.items()}
        return super().identity() | code | {"max_steps": self.max_steps}


async def _called(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(**given)
    output = await asyncio.to_thread(function, **given)
    return await output if isinstance(output, Awaitable) else output


def _registered(id: str) -> Any:
    try:
        import gymnasium
    except ImportError:
        raise MissingExtra("stepping a registered environment", "act") from None
    return gymnasium.make(id)


def _scalars(info: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are a number or a text; NumPy's become Python's."""
    parts = {str(name): value.item() if getattr(value, "ndim", None) == 0 else value for name, value in info.items()}
    return {name: part for name, part in parts.items() if isinstance(part, str | int) or (isinstance(part, float) and math.isfinite(part))}


def _code(function: Callable[..., Any]) -> dict[str, Any]:
    """What tells whether a function is still the same one: its name, and a hash of its source where that can be had."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    try:
        source = blake2b(inspect.getsource(named).encode(), digest_size=8).hexdigest()
    except (OSError, TypeError):
        source = None
    return {"function": named.__qualname__, "source": source}
