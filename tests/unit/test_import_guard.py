"""The start-up check of our package names."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler import import_guard
from scheduler.errors import ConfigurationError


def test_this_environment_passes() -> None:
    import_guard.check()


def test_our_own_distribution_may_own_them_in_any_spelling() -> None:
    import_guard.check_owners({"scheduler": ["haversack", "Haversack"], "other": ["thing"]})


def test_a_foreign_owner_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"api \(also in flask-api\)") as raised:
        import_guard.check_owners({"api": ["haversack", "flask-api"], "scheduler": ["haversack"]})
    assert "virtual environment" in raised.value.hint


def test_a_package_from_elsewhere_is_refused(tmp_path: Path) -> None:
    here = Path(import_guard.__file__).parent
    import_guard.check_places([("scheduler", here), ("predictors", None)])
    with pytest.raises(ConfigurationError, match=r"'api' would be imported from"):
        import_guard.check_places([("scheduler", here), ("api", tmp_path / "api")])
