"""What is installed is what is here: whole wheel, own names, a py.typed in every package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from support.tree import PACKAGES, ROOT

from scheduler import import_guard

BUILD = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Names in a wheel built from a copy of the tree, with the installed setuptools."""
    copy = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("haversack-*.whl")
    return frozenset(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_every_package_file(wheel_names: frozenset[str]) -> None:
    here = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert here - wheel_names == set()
    # ... the ones that are easily forgotten among them.
    for kind in ("migrations/env.py", "migrations/versions/", "dashboard/", "py.typed"):
        assert any(kind in name for name in wheel_names), kind


def test_the_wheel_holds_nothing_else(wheel_names: frozenset[str]) -> None:
    roots = {name.split("/")[0] for name in wheel_names}
    assert {root for root in roots if not root.endswith(".dist-info")} == set(PACKAGES)
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


def test_no_other_distribution_owns_our_names() -> None:
    import_guard.check()


def test_the_guard_knows_every_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = declared["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.removesuffix(".*") for name in included} == set(import_guard.NAMES)
    assert set(PACKAGES) <= set(import_guard.NAMES)
    assert declared["project"]["name"] == import_guard.DISTRIBUTION
    assert "Private :: Do Not Upload" in declared["project"]["classifiers"]


def test_every_package_is_typed() -> None:
    assert [name for name in PACKAGES if not Path(ROOT / name / "py.typed").is_file()] == []
