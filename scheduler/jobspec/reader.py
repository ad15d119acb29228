"""Text of a job file to plain data, with the line and column of every key and value.

YAML here is the safe subset a job file needs: one document, no anchors, aliases, tags or merge
keys, no duplicate keys. JSON is read by the json module and located by the YAML reader (JSON is
YAML) only when there is something to complain about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from scheduler.errors import FieldProblem, InvalidRequestError

BYTES_MAX = 262_144
DEPTH_MAX = 20
LOCATED_MAX = 65_536
"""JSON texts with more characters get no positions: a tenth of a second is the most we spend."""
_TOO_DEEP = f"nested deeper than {DEPTH_MAX} levels"

Path = tuple[str | int, ...]


@dataclass(slots=True)
class Located:
    """Plain data and where its parts stood.

    Attributes:
        value: dicts, lists, text, numbers, booleans and None.
        keys: (line, column) of each mapping key, 1-based, by path.
        values: (line, column) of each value, 1-based, by path.
    """

    value: object = None
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def key_at(self, path: Path) -> tuple[int, int] | None:
        """Position of the key at `path`, else of the nearest thing around it."""
        return self.keys.get(path) or self.value_at(path)

    def value_at(self, path: Path) -> tuple[int, int] | None:
        """Position of the value at `path`, else of the nearest value around it."""
        for length in range(len(path), -1, -1):
            if (found := self.values.get(path[:length])) is not None:
                return found
        return None


def shown(text: object) -> str:
    """`text` on one line with control characters and lone surrogates escaped."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in plain)


def dotted(path: Path) -> str:
    """`spec.task.command[0]` from its parts."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{shown(part)}" if text else shown(part)
    return text


def decode(text: str | bytes) -> str:
    """The text of a job file, checked for size and encoding.

    Raises:
        InvalidRequestError: longer than 256 KiB, or not UTF-8.
    """
    try:
        raw = text.encode() if isinstance(text, str) else text
        plain = text if isinstance(text, str) else raw.decode("utf-8-sig")
    except UnicodeError as error:
        raise _unreadable(f"the job file is not UTF-8 text: {shown(error)[:120]}") from error
    if len(raw) > BYTES_MAX:
        raise _unreadable(f"the job file has {len(raw)} bytes; at most {BYTES_MAX} are allowed")
    return plain.removeprefix("\ufeff")


def read_json(text: str) -> object:
    """Data of a JSON text.

    Raises:
        InvalidRequestError: malformed, duplicate keys, NaN or Infinity, nested too deep.
    """
    try:
        data: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _unreadable(f"not JSON: {error.msg}", error.lineno, error.colno) from error
    except RecursionError as error:
        _refuse_with_line(text)
        raise _unreadable(_TOO_DEEP) from error
    except _DuplicateError as error:
        _refuse_with_line(text)
        raise _unreadable(f"not acceptable JSON: {shown(error)}") from error
    except ValueError as error:  # NaN, or an integer of thousands of digits
        raise _unreadable(f"not acceptable JSON: {shown(error)}") from error
    # A text without that many brackets cannot be that deep: the common job skips the walk.
    if text.count("[") + text.count("{") > DEPTH_MAX and _too_deep(data):
        _refuse_with_line(text)
        raise _unreadable(_TOO_DEEP)
    return data


def _refuse_with_line(text: str) -> None:
    """Let the YAML reader, which knows lines, refuse what JSON was refused for.

    Raises:
        InvalidRequestError: it did; with a long text it is not asked.
    """
    if len(text) <= LOCATED_MAX:
        read_yaml(text)


def read_yaml(text: str) -> Located:
    """Data and positions of a YAML text. O(length), no recursion.

    Raises:
        InvalidRequestError: malformed, or outside the subset this module's text names.
    """
    try:
        return _Builder().build(yaml.parse(text, Loader=yaml.CSafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = shown(error.problem or error.context or "malformed")
        if mark is None:
            raise _unreadable(f"not YAML: {what}") from error
        raise _unreadable(f"not YAML: {what}", mark.line + 1, mark.column + 1) from error
    except yaml.reader.ReaderError as error:
        raise _unreadable(f"not YAML: {error.reason} (character {error.position})") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise _unreadable(f"not YAML: {shown(error)}") from error


def _too_deep(data: object) -> bool:
    level = [data]
    for _ in range(DEPTH_MAX):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return any(isinstance(parent, dict | list) for parent in level)


class _DuplicateError(ValueError):
    pass


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateError("a key appears twice in one object")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _unreadable(
    message: str, line: int | None = None, column: int | None = None, path: str = ""
) -> InvalidRequestError:
    return InvalidRequestError(
        "the job file cannot be read",
        problems=(FieldProblem(path=path, message=message, line=line, column=column),),
    )


@dataclass(slots=True)
class _Open:
    """A mapping or sequence whose end has not come yet."""

    path: Path
    container: dict[str, object] | list[object]
    key: str | None = None

    def next_path(self) -> Path:
        part = len(self.container) if isinstance(self.container, list) else self.key
        assert part is not None
        return (*self.path, part)

    def add(self, value: object) -> None:
        if isinstance(self.container, list):
            self.container.append(value)
        else:
            assert self.key is not None
            self.container[self.key] = value
            self.key = None

    @property
    def wants_key(self) -> bool:
        return isinstance(self.container, dict) and self.key is None


class _Builder:
    """Builds `Located` from parser events with a stack, so depth is a number and not recursion."""

    def __init__(self) -> None:
        self._result = Located()
        self._stack: list[_Open] = []
        self._documents = 0
        self._resolver = Resolver()
        self._constructor = SafeConstructor()

    def build(self, events: Iterator[yaml.Event]) -> Located:
        for event in events:
            self._take(event)
        if self._documents == 0:
            raise _unreadable("the job file is empty")
        return self._result

    def _take(self, event: yaml.Event) -> None:
        mark = event.start_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (None, None)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise _unreadable("one document per file: submit each job alone", line, column)
        elif isinstance(event, yaml.AliasEvent):
            raise _unreadable(
                f"YAML aliases are not accepted (*{event.anchor}): write it out", line, column
            )
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            assert line is not None
            assert column is not None
            self._node(event, line, column)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._stack.pop()

    def _node(
        self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int, column: int
    ) -> None:
        if event.anchor is not None:
            raise _unreadable(
                f"YAML anchors are not accepted (&{event.anchor}): write it out", line, column
            )
        if event.tag is not None:
            raise _unreadable(f"YAML tags are not accepted ({shown(event.tag)})", line, column)
        parent = self._stack[-1] if self._stack else None
        if parent is not None and parent.wants_key:
            self._key(parent, event, line, column)
            return
        path = parent.next_path() if parent is not None else ()
        self._result.values[path] = (line, column)
        value: object
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        else:
            value = {} if isinstance(event, yaml.MappingStartEvent) else []
        if parent is None:
            self._result.value = value
        else:
            parent.add(value)
        if isinstance(value, dict | list):
            if len(self._stack) >= DEPTH_MAX:
                raise _unreadable(_TOO_DEEP, line, column)
            self._stack.append(_Open(path, value))

    def _key(
        self,
        parent: _Open,
        event: yaml.ScalarEvent | yaml.CollectionStartEvent,
        line: int,
        column: int,
    ) -> None:
        key = self._scalar(event) if isinstance(event, yaml.ScalarEvent) else None
        assert isinstance(parent.container, dict)
        if not isinstance(key, str):
            raise _unreadable("a field name must be text", line, column, dotted(parent.path))
        if key == "<<" and isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            raise _unreadable("YAML merge keys are not accepted: write it out", line, column)
        path = (*parent.path, key)
        if key in parent.container:
            first = self._result.keys[path][0]
            raise _unreadable(
                f"duplicate key {shown(key)!r}, first on line {first}", line, column, dotted(path)
            )
        self._result.keys[path] = (line, column)
        parent.key = key

    def _scalar(self, event: yaml.ScalarEvent) -> object:
        """The value of a scalar by YAML 1.1's rules; dates and oddities stay text."""
        text = event.value
        resolve: Callable[..., object] = self._resolver.resolve
        tag = str(resolve(yaml.ScalarNode, text, event.implicit))
        kind = tag.removeprefix("tag:yaml.org,2002:")
        node = yaml.ScalarNode(tag, text)
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return self._constructor.construct_yaml_bool(node)
            if kind == "int":
                return self._constructor.construct_yaml_int(node)
            if kind == "float":
                return self._constructor.construct_yaml_float(node)
        except ValueError:  # `0x_`, or thousands of digits: matches the pattern, is no number
            return text
        return text
