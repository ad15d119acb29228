"""The documentation says what the code says, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import tomllib

import pytest
from support import tables
from support.tree import ROOT, documentation

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("name", tables.PLACES)
def test_generated_tables_are_current(name: str) -> None:
    path = ROOT / tables.PLACES[name]
    page = path.read_text(encoding="utf-8")
    current = tables.replace(page, name, getattr(tables, name)())
    if os.environ.get("HAVERSACK_WRITE_DOCS") == "1":
        path.write_text(current, encoding="utf-8")
        return
    assert page == current, f"{tables.PLACES[name]} is out of date: run `make docs`"


@pytest.mark.parametrize("kind", tables.names_that_docs_must_mention())
def test_docs_mention_every_stable_name(kind: str) -> None:
    text = "\n".join(documentation().values())
    missing = [
        name for name in tables.names_that_docs_must_mention()[kind] if f"`{name}`" not in text
    ]
    assert missing == [], f"undocumented {kind}"


def test_the_layers_are_those_of_the_import_contract() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = declared["tool"]["importlinter"]["contracts"][0]["layers"]
    layers = [
        {name for name in re.findall(r"[\w.]+", layer) if is_module(name)} for layer in contract
    ]
    _, _, page = documentation()["docs/architecture.md"].partition("## Layers")
    rows = [line.split("|") for line in page.partition("##")[0].splitlines() if "`" in line]
    told = [set(re.findall(r"`([\w.]+)`", row[2])) for row in rows if len(row) > 2]
    assert told == [layer for layer in layers if layer]


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_links_lead_somewhere() -> None:
    dead = [
        f"{page}: {target}"
        for page, text in documentation().items()
        for target in LINK.findall(text)
        if "://" not in target and not (ROOT / page).parent.joinpath(target).exists()
    ]
    assert not dead, "\n".join(dead)


def test_every_decision_record_has_its_parts() -> None:
    parts = ("## Context", "## Decision", "## Consequences", "## Alternatives", "## Measured")
    records = {
        page: text
        for page, text in documentation().items()
        if re.fullmatch(r"docs/adr/\d{4}-[a-z0-9-]+\.md", page)
    }
    assert len(records) >= 4
    for page, text in records.items():
        assert [part for part in parts if part not in text] == [], page
        assert re.search(r"^Status: (accepted|superseded by ADR-\d{4})$", text, re.MULTILINE), page


def test_changes_are_announced_in_fragments() -> None:
    kinds = {"added", "changed", "fixed", "removed", "security"}
    fragments = [
        path.name for path in (ROOT / "docs/changelog.d").iterdir() if path.name != "README.md"
    ]
    assert fragments
    for name in fragments:
        assert re.fullmatch(rf"\d+-[a-z0-9-]+\.({'|'.join(kinds)})\.md", name), name
