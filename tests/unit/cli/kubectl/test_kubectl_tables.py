from __future__ import annotations

from scheduler.cli.kubectl.tables import NONE, Table, field, joined, section
from scheduler.cli.render import Column

COLUMNS = (Column("NAME", field("name")), Column("MODELS", joined("models")))


def row(name: object, *models: str) -> dict[str, object]:
    return {"name": name, "models": list(models)}


def test_columns_are_as_wide_as_their_widest_cell_and_three_spaces_apart() -> None:
    assert list(Table(COLUMNS).lines([row("a", "H100"), row("much-longer", "A100", "L4")])) == [
        "NAME          MODELS",
        "a             H100",
        "much-longer   A100,L4",
    ]


def test_later_rows_keep_the_width_and_have_no_header() -> None:
    table = Table(COLUMNS)
    first = list(table.lines([row("much-longer", "H100")]))
    (later,) = table.lines([row("a", "L4")])
    assert later.index("L4") == first[0].index("MODELS") == first[1].index("H100")


def test_without_headers_only_the_cells_count() -> None:
    assert list(Table(COLUMNS, headers=False).lines([row("a", "L4")])) == ["a   L4"]


def test_what_is_absent_is_told_and_what_steers_terminals_is_not() -> None:
    (line,) = Table(COLUMNS, headers=False).lines([row(None)])
    assert line.split() == [NONE, NONE]
    (line,) = Table(COLUMNS, headers=False).lines([row("\x1b[2Ja\nb", "L4")])
    assert line == "a b   L4"
    assert field("name")(row(0)) == 0


def test_a_section_without_records_says_so() -> None:
    assert section("Pods", COLUMNS, []) == "Pods:  <none>"
    assert section("Pods", COLUMNS, [row("a", "L4")]) == "Pods:\n  NAME   MODELS\n  a      L4"
