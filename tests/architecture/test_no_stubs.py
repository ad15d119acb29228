"""Nothing is left for later: no markers, no functions without a body, no vague names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from support.tree import PACKAGES, documentation, modules

MARKER = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def test_no_markers() -> None:
    texts = {path: text for path, _, text in modules(*PACKAGES, "tests", "docs")}
    marked = [
        f"{path}:{number}: {line.strip()}"
        for path, text in {**texts, **documentation()}.items()
        for number, line in enumerate(text.splitlines(), 1)
        if MARKER.search(line)
    ]
    assert not marked, "\n".join(marked)


def _functions(
    node: ast.AST, *, declared: bool = False
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions that must have a body: not those of protocols, nor abstract or overloads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            is_protocol = any("Protocol" in ast.unparse(base) for base in child.bases)
            yield from _functions(child, declared=is_protocol)
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            marks = " ".join(ast.unparse(mark) for mark in child.decorator_list)
            if not declared and "overload" not in marks and "abstractmethod" not in marks:
                yield child
        yield from _functions(child, declared=False)


def _is_stub(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    body = [
        line
        for line in function.body
        if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
    ]
    if not body:
        # A documented no-op is a decision (a sink, a fake's close); an undocumented one a stub.
        return ast.get_docstring(function) is None
    return all("NotImplemented" in ast.unparse(line) or isinstance(line, ast.Pass) for line in body)


def test_no_function_is_a_stub() -> None:
    stubs = [
        f"{path}:{function.lineno} {function.name}"
        for path, tree, _ in modules(*PACKAGES)
        for function in _functions(tree)
        if _is_stub(function)
    ]
    assert not stubs, "\n".join(stubs)


def test_no_vague_names() -> None:
    vague = [
        path
        for path, tree, _ in modules(*PACKAGES, "tests")
        if VAGUE & set(path.removesuffix(".py").split("/"))
        or any(
            isinstance(node, ast.ClassDef) and node.name.endswith("Manager")
            for node in ast.walk(tree)
        )
    ]
    assert not vague, "\n".join(vague)
