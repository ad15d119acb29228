"""Functions fit on a screen and modules can be read in one go."""

from __future__ import annotations

import ast

from support.tree import PACKAGES, modules

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
READ = (*PACKAGES, "tests", "docs")


def test_functions_are_short() -> None:
    long = [
        f"{path}:{node.lineno} {node.name}: {lines} lines"
        for path, tree, _ in modules(*READ)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not long, "\n".join(long)


def test_modules_are_short() -> None:
    long = [
        f"{path}: {lines} lines"
        for path, _, text in modules(*READ)
        if (lines := text.count("\n")) > MODULE_LINES_MAX
    ]
    assert not long, "\n".join(long)
