"""What a daemon says when it cannot start."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.agent.inventory import local_inventory
from scheduler.backends.local import Local
from scheduler.daemon import Daemon
from scheduler.errors import ConfigurationError
from scheduler.settings import ApiSettings, QueueSettings, Settings, StoreSettings


def test_a_data_directory_it_cannot_write_is_named(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o700)
    (data_dir / "identity").mkdir()  # not even root can write a file there
    settings = Settings(store=StoreSettings(data_dir=data_dir), api=ApiSettings(port=0))
    for _ in range(2):  # the lock was given back: the second says the same
        with pytest.raises(ConfigurationError, match=r"cannot be used: .*identity"):
            Daemon(settings, Local(local_inventory("1x1:H100")))


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        ("srtf-oracle", r"HAVERSACK_QUEUE__POLICY is srtf-oracle, .* nobody knows beforehand"),
        ("lottery", r"HAVERSACK_QUEUE__POLICY: no policy is called 'lottery'; known: .*easy"),
    ],
)
def test_a_policy_that_cannot_be_live_is_refused(
    tmp_path: Path, policy: str, complaint: str
) -> None:
    settings = Settings(
        store=StoreSettings(data_dir=tmp_path / "data"),
        api=ApiSettings(port=0),
        queue=QueueSettings(policy=policy),
    )
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        Daemon(settings, Local(local_inventory("1x1:H100")))
    assert "HAVERSACK_QUEUE__POLICY" in refused.value.hint
    assert not (tmp_path / "data").exists(), "nothing was touched"
