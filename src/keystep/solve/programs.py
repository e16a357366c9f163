"""Programs that a model writes to work out an answer, carried out by an interpreter of our own: numbers, texts, lists, nothing else.

For Program-of-Thoughts prompting (Chen et al. 2022, arXiv 2211.12588), whose zero-shot form has a model write a function `solver()`. The
program is never given to Python: its syntax tree is walked here, and what is not in this file does not exist for it. There are no modules
but `math`, no attributes but the methods below, no files, no way to a Python object. Steps, lengths and the size of numbers are limited,
so that every program ends soon.

Not covered: classes, lambdas, generators that are kept, exceptions, f-strings with formats other than fixed digits, sympy.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from keystep.run.flags import Flag

STEPS = 100_000  # nodes that are worked on
BITS = 4_096  # of a whole number
LENGTH = 10_000  # of a text or a list
DEPTH = 40  # of calls
SOURCE = 20_000  # characters of a program

_FENCE = re.compile(r"```[a-zA-Z0-9]*[ \t]*\n(.*?)(?:```|\Z)", re.S)
_BEGIN = re.compile(r"^(?:def |import |from |[A-Za-z_]\w* *=)", re.M)
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_MATH = (
    "sqrt", "ceil", "floor", "trunc", "fabs", "gcd", "lcm", "log", "log2", "log10", "exp", "sin", "cos", "tan", "atan", "asin", "acos",
    "radians", "degrees", "hypot", "isqrt",
)  # fmt: skip
_SMALL = ("factorial", "comb", "perm")  # of numbers up to 1,000 only

Scalar = (int, float, str, bool, type(None))


def program_in(text: str) -> str:
    """The program in a model's text: its last code fence, else everything from the first line that is code, as far as it can be read.

    Raises:
        Flag: there is none.
    """
    fences = _FENCE.findall(text)
    begin = _BEGIN.search(text)
    if not fences and begin is None:
        raise Flag("there is no program")
    found = str(fences[-1]) if fences else text[begin.start() if begin else 0 :]
    lines = found.splitlines()
    while lines and not fences:  # what is said behind a program is none
        if _tree("\n".join(lines)) is not None:
            break
        lines.pop()
    return "\n".join(lines)


def outcome(source: str) -> int | float | str | bool:
    """What the program's `solver()` returns; without one, what it leaves in `ans` or `answer`.

    Raises:
        Flag: it is no program, does something that there is not here, fails, takes too long, or has no outcome.
    """
    tree = _tree(source)
    if tree is None:
        raise Flag("the program cannot be read")
    walk = _Walk()
    found: Any
    try:
        walk.block(tree.body, names := dict[str, Any]())
        found = walk.called(names["solver"], []) if isinstance(names.get("solver"), _Function) else names.get("ans", names.get("answer"))
    except (_Return, _Loop):
        raise Flag("the program leaves what it is not in") from None
    except (ArithmeticError, TypeError, ValueError, LookupError, RecursionError, AttributeError) as error:
        raise Flag(f"the program fails: {type(error).__name__}") from None
    if isinstance(found, list | tuple) and len(found) == 1:
        found = found[0]
    if not isinstance(found, int | float | str):
        raise Flag("the program has no outcome")
    return found


def _tree(source: str) -> ast.Module | None:
    if len(source) > SOURCE:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a model's text is none of the user's business
            return ast.parse(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


class _Return(Exception):
    pass


class _Loop(Exception):
    """A break, or with `again` a continue."""

    def __init__(self, again: bool) -> None:
        self.again = again


class _Function:
    def __init__(self, node: ast.FunctionDef, outer: dict[str, Any]) -> None:
        self.node, self.outer = node, outer


class _Walk:
    """Carries out a tree; names are looked up in what it is given, then in those around it, then among the functions of this file."""

    def __init__(self) -> None:
        self.steps = self.depth = 0

    # Statements.

    def block(self, statements: Sequence[ast.stmt], names: dict[str, Any]) -> None:
        for statement in statements:
            self.spend(1)
            self.statement(statement, names)

    def statement(self, node: ast.stmt, names: dict[str, Any]) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                found = self.value(value, names)
                for target in targets:
                    self.assign(target, found, names)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self.assign(target, self.value(value, names), names)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                names[name] = self.binary(op, self.name(name, names), self.value(value, names))
            case ast.AugAssign(target=ast.Subscript(value=of, slice=ast.expr() as at) as target, op=op, value=value):
                before = self.item(self.value(of, names), self.value(at, names))
                self.assign(target, self.binary(op, before, self.value(value, names)), names)
            case ast.Return(value=value):
                names["return"] = None if value is None else self.value(value, names)
                raise _Return
            case ast.If(test=test, body=body, orelse=orelse):
                self.block(body if self.value(test, names) else orelse, names)
            case ast.While(test=test, body=body, orelse=[]):
                while self.value(test, names):
                    if not self.once(body, names):
                        break
            case ast.For(target=target, iter=over, body=body, orelse=[]):
                for each in self.items(self.value(over, names)):
                    self.assign(target, each, names)
                    if not self.once(body, names):
                        break
            case ast.FunctionDef(name=name, decorator_list=[]):
                names[name] = _Function(node, names)
            case ast.Expr(value=ast.Call(func=ast.Name(id="print"))):
                pass
            case ast.Expr(value=value):
                self.value(value, names)
            case ast.Import(names=[ast.alias(name="math", asname=None)]) | ast.ImportFrom(module="math", level=0) | ast.Pass():
                pass  # all of it is here, with and without its module's name
            case ast.Break() | ast.Continue():
                raise _Loop(again=isinstance(node, ast.Continue))
            case _:
                raise Flag(f"there is no {type(node).__name__} for programs")

    def once(self, body: Sequence[ast.stmt], names: dict[str, Any]) -> bool:
        """One round of a loop; whether another one may come."""
        self.spend(1)
        try:
            self.block(body, names)
        except _Loop as loop:
            return loop.again
        return True

    def assign(self, target: ast.expr, value: Any, names: dict[str, Any]) -> None:
        match target:
            case ast.Name(id=name):
                names[name] = value
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                values = list(self.items(value))
                if len(values) != len(parts):
                    raise ValueError
                for part, each in zip(parts, values, strict=True):
                    self.assign(part, each, names)
            case ast.Subscript(value=of, slice=at):
                into = self.value(of, names)
                if not isinstance(into, list | dict):
                    raise TypeError
                into[self.scalar(self.value(at, names))] = value
                self.sized(into)
            case _:
                raise Flag(f"nothing can be put into a {type(target).__name__}")

    # Expressions.

    def value(self, node: ast.expr | None, names: dict[str, Any]) -> Any:
        self.spend(1)
        match node:
            case ast.Constant(value=value) if isinstance(value, Scalar):
                return self.sized(value)
            case ast.Name(id=name):
                return self.name(name, names)
            case ast.BinOp(left=left, op=op, right=right):
                return self.binary(op, self.value(left, names), self.value(right, names))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return _UNARY[type(op)](self.value(operand, names))
            case ast.BoolOp(op=op, values=values):
                for each in values[:-1]:
                    found = self.value(each, names)
                    if bool(found) != isinstance(op, ast.And):
                        return found
                return self.value(values[-1], names)
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self.compared(self.value(left, names), ops, others, names)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.value(body if self.value(test, names) else orelse, names)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                found = [self.value(part, names) for part in parts]
                return found if isinstance(node, ast.List) else tuple(found)
            case ast.Dict(keys=keys, values=values):
                pairs = [(self.value(key, names), self.value(each, names)) for key, each in zip(keys, values, strict=True)]
                return {self.scalar(key): each for key, each in pairs}
            case ast.ListComp(elt=each, generators=[over]) | ast.GeneratorExp(elt=each, generators=[over]):
                inner = {**names}
                return [self.value(each, inner) for _ in self.comprehended(over, inner)]
            case ast.Subscript(value=of, slice=ast.Slice(lower=lower, upper=upper, step=step)):
                ends = [None if end is None else self.value(end, names) for end in (lower, upper, step)]
                return self.sized(self.sequence(self.value(of, names))[slice(*ends)])
            case ast.Subscript(value=of, slice=at):
                return self.item(self.value(of, names), self.value(at, names))
            case ast.Attribute(value=ast.Name(id="math"), attr=name):
                return self.name(name, {})
            case ast.Call(func=ast.Attribute(value=of, attr=name), args=args, keywords=[]) if name in _METHODS:
                return self.sized(_METHODS[name](self, self.value(of, names), *(self.value(each, names) for each in args)))
            case ast.Call(func=called, args=args, keywords=keywords):
                function = self.value(called, names)
                given = [self.value(each, names) for each in args]
                return self.called(function, given, {each.arg: self.value(each.value, names) for each in keywords})
            case ast.JoinedStr(values=parts):
                return self.sized("".join(self.text(part, names) for part in parts))
            case _:
                raise Flag(f"there is no {type(node).__name__} for programs")

    def name(self, name: str, names: Mapping[str, Any]) -> Any:
        around: Any = names
        while around is not None:
            if name in around:
                return around[name]
            around = around.get("outer names")
        if name not in _FUNCTIONS:
            raise Flag(f"there is no {name[:40]!r} for programs")
        return _FUNCTIONS[name]

    def binary(self, op: ast.operator, left: Any, right: Any) -> Any:
        if type(op) not in _BINARY:
            raise Flag(f"there is no {type(op).__name__} for programs")
        if isinstance(op, ast.Pow):
            self.numbers(left, right)
            if isinstance(left, int) and isinstance(right, int) and abs(left) > 1 and left.bit_length() * right > BITS:
                raise Flag("the program's numbers grow too large")
        elif isinstance(op, ast.Mod):
            self.numbers(left, right)  # a text would be a format
        elif isinstance(op, ast.Mult) and not (isinstance(left, int | float) and isinstance(right, int | float)):
            many, times = (right, left) if isinstance(left, int) else (left, right)
            if not isinstance(times, int) or len(self.sequence(many)) * times > LENGTH:
                raise Flag("the program's texts or lists grow too long")
        return self.sized(_BINARY[type(op)](left, right))

    def compared(self, left: Any, ops: Sequence[ast.cmpop], others: Sequence[ast.expr], names: dict[str, Any]) -> bool:
        for op, other in zip(ops, others, strict=True):
            right = self.value(other, names)
            match op:
                case ast.Is() | ast.IsNot() if right is None or isinstance(right, bool):
                    held = (left is right) == isinstance(op, ast.Is)
                case ast.In() | ast.NotIn():
                    inside = right if isinstance(right, dict | str) else [each for each in self.items(right) if isinstance(each, Scalar)]
                    held = (self.scalar(left) in inside) == isinstance(op, ast.In)
                case _ if type(op) in _COMPARED:
                    held = bool(_COMPARED[type(op)](self.scalar(left), self.scalar(right)))
                case _:
                    raise Flag(f"there is no {type(op).__name__} for programs")
            if not held:
                return False
            left = right
        return True

    def comprehended(self, over: ast.comprehension, names: dict[str, Any]) -> Iterator[None]:
        for each in self.items(self.value(over.iter, names)):
            self.spend(1)
            self.assign(over.target, each, names)
            if all(self.value(test, names) for test in over.ifs):
                yield None

    def text(self, part: ast.expr, names: dict[str, Any]) -> str:
        """A part of an f-string; of formats there are fixed digits, `.2f`."""
        if not isinstance(part, ast.FormattedValue):
            return str(self.scalar(self.value(part, names)))
        found = self.scalar(self.value(part.value, names))
        form = "" if part.format_spec is None else str(self.value(part.format_spec, names))
        if form and not re.fullmatch(r",?(\.\d{1,2}f)?", form):
            raise Flag("there is no such format for programs")
        return format(found, form)

    def called(self, function: Any, given: list[Any], named: Mapping[str | None, Any] | None = None) -> Any:
        if isinstance(function, _Function):
            return self.entered(function, given, named or {})
        if not callable(function) or (named and function is not _sorted):
            raise Flag("there is no such call for programs")
        for each in given:  # what Python's own functions go through without being watched
            if isinstance(each, list | tuple | dict):
                self.spend(len(each))
        return self.sized(function(*given, **{str(name): each for name, each in (named or {}).items()}))

    def entered(self, function: _Function, given: list[Any], named: Mapping[str | None, Any]) -> Any:
        arguments = function.node.args
        if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs or self.depth >= DEPTH:
            raise Flag("there is no such function for programs, or too many inside one another")
        wanted = [each.arg for each in arguments.args]
        defaults = dict(zip(reversed(wanted), reversed(arguments.defaults), strict=False))
        inner: dict[str, Any] = {"outer names": function.outer}
        inner |= {name: self.value(default, function.outer) for name, default in defaults.items()}
        inner |= dict(zip(wanted, given, strict=False)) | {name: each for name, each in named.items() if name in wanted}
        if len(given) > len(wanted) or not set(wanted) <= inner.keys() or not set(named) <= set(wanted):
            raise TypeError
        self.depth += 1
        try:
            self.block(function.node.body, inner)
        except _Return:
            return inner["return"]
        finally:
            self.depth -= 1
        return None

    # What keeps it small.

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > STEPS:
            raise Flag("the program takes too long")

    def sized(self, value: Any) -> Any:
        if isinstance(value, int) and value.bit_length() > BITS:
            raise Flag("the program's numbers grow too large")
        if isinstance(value, str | list | tuple | dict):
            self.spend(len(value) // 16)  # many long ones take room
            if len(value) > LENGTH:
                raise Flag("the program's texts or lists grow too long")
        if isinstance(value, complex):
            raise ValueError
        return value

    def scalar(self, value: Any) -> Any:
        """A number or a text: nothing that is compared or put into words part by part."""
        if not isinstance(value, Scalar):
            raise TypeError
        return value

    def numbers(self, *values: Any) -> None:
        if not all(isinstance(value, int | float) for value in values):
            raise TypeError

    def sequence(self, value: Any) -> Any:
        if not isinstance(value, str | list | tuple):
            raise TypeError
        return value

    def items(self, value: Any) -> list[Any]:
        if not isinstance(value, str | list | tuple | dict):
            raise TypeError
        self.spend(len(value))
        return list(value)

    def item(self, of: Any, at: Any) -> Any:
        return of[self.scalar(at)] if isinstance(of, dict) else self.sequence(of)[at]


# What programs may call. None of it calls back, or looks at more than it was given.


def _range(*ends: int) -> list[int]:
    if len(range(*ends)) > LENGTH:
        raise Flag("the program's texts or lists grow too long")
    return list(range(*ends))


def _flat(value: Any) -> list[Any]:
    """The parts of a list or tuple, which have to be numbers, or texts."""
    parts = list(value.values() if isinstance(value, dict) else value)
    if not isinstance(value, list | tuple | dict) or not all(isinstance(part, Scalar) for part in parts):
        raise TypeError
    return parts


def _sum(parts: Any) -> int | float:
    found: list[int | float] = [part if isinstance(part, int | float) else _refuse() for part in _flat(parts)]
    return sum(found)


def _product(parts: Any) -> int | float:
    found: int | float = 1
    for part in _flat(parts):
        found = found * part if isinstance(part, int | float) else _refuse()
        if isinstance(found, int) and found.bit_length() > BITS:
            raise Flag("the program's numbers grow too large")
    return found


def _refuse() -> Any:
    raise TypeError


def _chosen(choose: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *parts: choose(_flat(parts[0] if len(parts) == 1 else parts))


def _of_scalar(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: make(*given) if all(isinstance(each, Scalar) for each in given) else _refuse()


def _small(name: str) -> Callable[..., int]:
    def work(*given: int) -> int:
        if not all(isinstance(each, int) and each <= 1000 for each in given):
            raise Flag("the program's numbers grow too large")
        return int(getattr(math, name)(*given))

    return work


def _round(number: Any, digits: Any = None) -> Any:
    if not isinstance(number, int | float) or not (digits is None or (isinstance(digits, int) and abs(digits) <= 20)):
        raise TypeError
    return round(number, digits)


def _sorted(parts: Any, reverse: bool = False) -> list[Any]:
    return sorted(_flat(parts), reverse=bool(reverse))


def _power(base: Any, exponent: Any) -> Any:
    return _Walk().binary(ast.Pow(), base, exponent)


_FUNCTIONS: dict[str, Any] = {
    **{name: _of_scalar(getattr(math, name)) for name in _MATH},
    **{name: _small(name) for name in _SMALL},
    "pi": math.pi, "e": math.e, "inf": math.inf, "prod": _product, "pow": _power, "abs": _of_scalar(abs), "round": _round,
    "int": _of_scalar(int), "float": _of_scalar(float), "str": _of_scalar(str), "bool": bool, "len": len, "sum": _sum, "min": _chosen(min),
    "max": _chosen(max), "sorted": _sorted, "reversed": lambda parts: list(reversed(parts)), "range": _range,
    "list": list, "tuple": tuple, "set": lambda parts: list(dict.fromkeys(_flat(parts))), "enumerate": lambda parts: list(enumerate(parts)),
    "zip": lambda *parts: list(zip(*parts, strict=False)), "any": any, "all": all, "divmod": _of_scalar(divmod),
    "__name__": "",
}  # fmt: skip


def _append(walk: _Walk, of: Any, part: Any) -> None:
    if not isinstance(of, list):
        raise TypeError
    of.append(part)
    walk.sized(of)


def _text(method: str) -> Callable[..., Any]:
    def work(walk: _Walk, of: Any, *given: Any) -> Any:
        if not isinstance(of, str) or not all(isinstance(each, str) for each in given):
            raise TypeError
        walk.spend(len(of))
        return getattr(of, method)(*given)

    return work


_METHODS: dict[str, Callable[..., Any]] = {
    "append": _append,
    "items": lambda walk, of: [(key, of[key]) for key in walk.items(of)],
    "keys": lambda walk, of: walk.items(of),
    "values": lambda walk, of: [of[key] for key in walk.items(of)],
    "get": lambda walk, of, key, default=None: of.get(walk.scalar(key), default) if isinstance(of, dict) else _refuse(),
    "count": lambda walk, of, part: _flat(walk.items(of)).count(walk.scalar(part)),
    "index": lambda walk, of, part: _flat(walk.items(of)).index(walk.scalar(part)),
    **{name: _text(name) for name in ("lower", "upper", "strip", "split")},
    "join": lambda walk, of, parts: _joined(walk, of, parts),
}


def _joined(walk: _Walk, of: Any, parts: Any) -> str:
    found = walk.items(parts)
    if not isinstance(of, str) or not all(isinstance(part, str) for part in found):
        raise TypeError
    if sum(map(len, found)) + len(of) * len(found) > LENGTH:
        raise Flag("the program's texts or lists grow too long")
    return of.join(found)
