"""Job file text to (`JobSpec`, canonical JSON), or an error that names every field at fault."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import get_args

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scheduler.errors import FieldProblem, InvalidRequestError
from scheduler.jobspec.document import (
    API_VERSION,
    KIND,
    JobDocument,
    Spec,
    contradictions,
    to_model,
)
from scheduler.jobspec.reader import (
    LOCATED_MAX,
    Located,
    Path,
    decode,
    dotted,
    read_json,
    read_yaml,
    shown,
)
from scheduler.model.job import JobSpec

PROBLEMS_MAX = 50

_MESSAGES = {
    "missing": "required field is missing",
    "extra_forbidden": "unknown field",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "string_too_short": "must not be empty",
}


def parse_job_json(text: str | bytes) -> tuple[JobSpec, str]:
    """The job of a JSON text, and its canonical JSON document.

    The canonical document holds what was submitted, no defaults added, keys sorted, no spaces.
    A good job costs tens of microseconds; positions are looked for only when something is wrong.

    Raises:
        InvalidRequestError: unreadable or invalid; `problems` has path, line and column.
    """
    plain = decode(text)
    return _parse(read_json(plain), lambda: _positions(plain))


def parse_job_yaml(text: str | bytes, folder: PurePath | None = None) -> tuple[JobSpec, str]:
    """The job of a YAML text (JSON is YAML), and its canonical JSON document.

    Args:
        text: the job file.
        folder: where the file lies; a relative `spec.workdir` starts there. None refuses one.

    Raises:
        InvalidRequestError: unreadable or invalid; `problems` has path, line and column.
    """
    located = read_yaml(decode(text))
    if folder is not None:
        _resolve_workdir(located.value, folder)
    return _parse(located.value, lambda: located)


def _resolve_workdir(document: object, folder: PurePath) -> None:
    spec = document.get("spec") if isinstance(document, dict) else None
    if isinstance(spec, dict) and isinstance(spec.get("workdir"), str):
        spec["workdir"] = str(folder / spec["workdir"])


def job_schema() -> dict[str, object]:
    """JSON Schema (draft 2020-12) of the job file."""
    schema = JobDocument.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://haversack.dev/schemas/v1alpha1/job.schema.json",
        **schema,
    }


def placed_in(text: str | bytes, problems: tuple[FieldProblem, ...]) -> tuple[FieldProblem, ...]:
    """`problems` with the positions that their paths have in `text`, a readable job file.

    For problems that a server found in the canonical document, which nobody has in front of them.
    """
    located = _positions(decode(text))
    by_path = {dotted(path): place for path, place in located.values.items()}
    return tuple(
        replace(problem, line=line, column=column)
        for problem in problems
        for line, column in [by_path.get(problem.path, (None, None))]
    )


def _positions(text: str) -> Located:
    if len(text) > LOCATED_MAX:
        return Located()
    try:
        return read_yaml(text)
    except InvalidRequestError:
        # Some JSON is no YAML (escaped surrogate pairs): the problems stand, without positions.
        return Located()


def _parse(data: object, locate: Callable[[], Located]) -> tuple[JobSpec, str]:
    try:
        canonical = orjson.dumps(data, option=orjson.OPT_SORT_KEYS)
        job = JobDocument.model_validate(data)
    except orjson.JSONEncodeError as error:
        raise _invalid([_plain_problem(shown(error))]) from error
    except ValidationError as error:
        raise _invalid(sorted(_problems(error, locate()), key=_place), data) from error
    clashes = list(contradictions(job))
    if clashes:
        located = locate()
        raise _invalid([_at(path, message, located.value_at(path)) for path, message in clashes])
    return to_model(job), canonical.decode()


def _plain_problem(why: str) -> FieldProblem:
    return FieldProblem(
        path="",
        message=f"text must be valid Unicode and whole numbers must fit 64 bits: {why}",
    )


def _invalid(problems: list[FieldProblem], data: object = None) -> InvalidRequestError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    hint = "the fields are described in docs/reference/job-file.md"
    if isinstance(data, Mapping) and "apiVersion" not in data and _looks_short(data):
        hint = (
            f"this looks like a bare spec: put these fields under `spec:` and add `apiVersion:"
            f" {API_VERSION}`, `kind: {KIND}` and `metadata: {{name: ...}}` above it"
        )
    return InvalidRequestError(
        f"the job file has {count}", problems=tuple(problems[:PROBLEMS_MAX]), hint=hint
    )


def _looks_short(data: Mapping[object, object]) -> bool:
    return "spec" not in data and not _names(Spec).isdisjoint(map(str, data))


def _problems(error: ValidationError, located: Located) -> Iterator[FieldProblem]:
    for detail in error.errors(include_url=False, include_input=True):
        kind, loc = detail["type"], detail["loc"]
        path, message, suggestion = _field_path(loc, kind), _message(detail), None
        position = located.key_at(path) if loc[-1:] == ("[key]",) else located.value_at(path)
        if kind == "extra_forbidden":
            position = located.key_at(path)
            suggestion = _closest(str(path[-1]), sorted(_names(_model_at(path[:-1]))))
        elif kind == "literal_error":
            allowed = _literals(detail)
            suggestion = _closest(str(detail["input"]), allowed)
        elif kind == "string_type" and isinstance(detail["input"], int | float):
            message += ": put it in quotes"
        yield _at(path, message, position, suggestion)


def _field_path(loc: Path, kind: str) -> Path:
    """Where in the file pydantic's `loc` points: without our union's tags and its own key mark."""
    if loc[:2] == ("spec", "tasks"):
        loc = loc[:2] + loc[3:]
    if kind != "extra_forbidden" and loc[-1:] == ("[key]",):
        loc = loc[:-1]
    return loc


def _place(problem: FieldProblem) -> tuple[int, int]:
    return problem.line or 0, problem.column or 0


def _at(
    path: Path, message: str, position: tuple[int, int] | None, suggestion: str | None = None
) -> FieldProblem:
    line, column = position or (None, None)
    return FieldProblem(dotted(path), message, line, column, suggestion)


def _message(detail: ErrorDetails) -> str:
    if (known := _MESSAGES.get(detail["type"])) is not None:
        return known
    text = detail["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ", 1)
    text = text.replace("must be valid", "must be a valid", 1)
    return shown(
        text[:1].lower() + text[1:] if text[:1].isupper() and text[1:2].islower() else text
    )


def _literals(detail: ErrorDetails) -> list[str]:
    expected = str(detail.get("ctx", {}).get("expected", ""))
    return [part.strip("' ") for part in expected.replace(" or ", ", ").split(",")]


def _closest(name: str, candidates: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)), None)


def _names(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def _model_at(path: Path) -> type[BaseModel]:
    """The model whose fields stand at `path`."""
    model: type[BaseModel] = JobDocument
    for part in path:
        field = next(f for n, f in model.model_fields.items() if (f.alias or n) == part)
        inner = [field.annotation, *get_args(field.annotation)]
        inner += [deep for arg in inner for deep in get_args(arg)]
        model = next(a for a in inner if isinstance(a, type) and issubclass(a, BaseModel))
    return model
