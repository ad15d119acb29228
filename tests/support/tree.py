"""The repository as text: which files are ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(
    name for name in ("scheduler", "api", "policies", "predictors") if (ROOT / name).is_dir()
)
DOCS = ROOT / "docs"


def modules(*folders: str) -> Iterator[tuple[str, ast.Module, str]]:
    """Path relative to the root, syntax tree and text of every Python file in `folders`."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            yield str(path.relative_to(ROOT)), ast.parse(text), text


def documentation() -> dict[str, str]:
    """Every Markdown page by its path relative to the root: docs and README."""
    pages = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
    return {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in pages}
