import os
from pathlib import Path

import pytest

from scheduler.errors import AlreadyRunningError, ConfigurationError
from scheduler.store.datadir import DataDirectory, refuse_network_filesystem

ROOT_LINE = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"


def _mounts(tmp_path: Path, point: Path, kind: str) -> Path:
    escaped = str(point).replace(" ", "\\040")
    listing = tmp_path / "mountinfo"
    listing.write_text(f"{ROOT_LINE}99 27 0:44 / {escaped} rw shared:1 - {kind} host:/x rw\n")
    return listing


def test_it_is_made_private_and_names_its_holder(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "a" / "b")
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert (directory.path / "lock").read_text() == f"{os.getpid()}\n"
    with pytest.raises(AlreadyRunningError, match=str(os.getpid())):
        DataDirectory(tmp_path / "a" / "b")
    directory.close()
    directory.close()
    DataDirectory(tmp_path / "a" / "b").close()


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        DataDirectory(tmp_path / "file")


def test_a_directory_that_cannot_be_locked_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "lock").mkdir()  # as good as a read-only directory, but root may not write either
    with pytest.raises(ConfigurationError, match="cannot be used"):
        DataDirectory(tmp_path)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "lustre"])
def test_network_filesystems_are_refused(tmp_path: Path, kind: str) -> None:
    point = tmp_path / "with space"
    (point / "data").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=f"network file system .{kind}"):
        refuse_network_filesystem(point / "data", _mounts(tmp_path, point, kind))


def test_the_innermost_mount_decides(tmp_path: Path) -> None:
    point = tmp_path / "local"
    point.mkdir()
    listing = _mounts(tmp_path, tmp_path, "nfs4")
    listing.write_text(listing.read_text() + f"100 99 0:45 / {point} rw - ext4 /dev/vdb rw\n")
    refuse_network_filesystem(point, listing)
    with pytest.raises(ConfigurationError):
        refuse_network_filesystem(tmp_path, listing)


def test_without_a_list_of_mounts_nothing_is_refused(tmp_path: Path) -> None:
    refuse_network_filesystem(tmp_path, tmp_path / "absent")
