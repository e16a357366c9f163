"""YAML as procedure files are written in it: plain data only, each value with the line it stands on.

The safe loader with what surprises taken out: duplicate keys, aliases (so no bombs), tags and keys that are not text are refused; scalars
are read as YAML 1.2 reads them (`no`, `12:30` and `2024-01-01` are texts, 010 is ten).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from keystep.errors import BadInput

MOST_CHARACTERS = 1_000_000
MOST_LEVELS = 50

_STR, _MAP = "tag:yaml.org,2002:str", "tag:yaml.org,2002:map"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]{1,4000}|0x[0-9a-fA-F]{1,4000}", "-+0123456789"),
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+0123456789."),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (the base class has it so)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not read: write the value out", mark)
        return super().compose_node(parent, index)


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), ["" if c == "\0" else c for c in _first])
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value, 16) if node.value[:2] == "0x" else int(node.value))


class Document:
    """A YAML text, read: its `value`, and where in it things stand."""

    def __init__(self, text: str, name: str) -> None:
        """`name` is what messages call it.

        Raises:
            BadInput: it is too big or not YAML of this kind.
        """
        self.name = name
        if len(text) > MOST_CHARACTERS:
            mend = "keep records in a file of their own (`data`)"
            raise BadInput(f"has more than {MOST_CHARACTERS} characters", field=name, value=len(text), mend=mend)
        try:
            loader = _Loader(text)
            self._root = loader.get_single_node()
            if self._root is not None:
                _check(self._root)
            self.value: Any = None if self._root is None else loader.construct_document(self._root)
        except yaml.MarkedYAMLError as error:
            where = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
            problem = ", ".join(part for part in (error.context, error.problem) if part)
            raise BadInput(f"is not YAML of this kind: {problem}{where}", field=name, mend="`keystep init` writes an example") from None
        except RecursionError:
            raise BadInput(f"is nested deeper than {MOST_LEVELS} levels", field=name, mend="write it flatter") from None
        except (yaml.YAMLError, ValueError) as error:
            raise BadInput(f"is not YAML: {str(error).splitlines()[0]}", field=name, mend="`keystep init` writes an example") from None

    def line(self, path: Sequence[str | int]) -> int:
        """The line, from 1, of what `path` leads to, or of the last thing on the way that is there."""
        node, line = self._root, 1
        for part in path:
            if isinstance(node, yaml.MappingNode):
                pair = next(((key, value) for key, value in node.value if key.value == part), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line


def _check(node: Any, level: int = 0) -> None:
    """Refuse what is no plain data."""
    if level > MOST_LEVELS:
        raise RecursionError
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rpartition(":")[2] not in (*_SCALARS, "str", "map", "seq"):
        raise yaml.MarkedYAMLError(problem=f"the tag {node.tag} is not read", problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.tag != _STR:
                raise yaml.MarkedYAMLError(problem=f"a key is a text, {key.value!r} is not: put it in quotes", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands there twice", problem_mark=key.start_mark)
            seen.add(key.value)
            _check(value, level + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check(value, level + 1)
