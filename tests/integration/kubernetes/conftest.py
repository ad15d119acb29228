"""A real control plane for each module, and the ground of the contract tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.kubernetes.fake_server import FakeApiServer, running_fake
from support.kubernetes.ground import Ground
from support.kubernetes.real_server import ControlPlane, NoControlPlaneError, control_plane


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A module's own control plane: what others left on it, a daemon would decide about.

    Skips without programs, fails if they are required.
    """
    try:
        with control_plane() as running:
            yield running
    except NoControlPlaneError as error:
        reason = f"tests against a real API server do not run: {error}"
        if os.environ.get("HAVERSACK_REQUIRE_KUBERNETES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


_GROUNDS = ["fake", pytest.param("real", marks=pytest.mark.cluster)]


@pytest.fixture(params=_GROUNDS)
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """The same test on the fake and on the judge."""
    with _ground(request) as found:
        yield found


@pytest.fixture(scope="module", params=_GROUNDS)
def shared_ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """One for all tests of a module, which must leave each other alone."""
    with _ground(request) as found:
        yield found


def _denials(fake: FakeApiServer) -> int:
    """Bindings that the fence refused; the fake knows no other policy."""
    return sum(each.what == "pods/binding" and each.status == 422 for each in fake.journal)


@contextmanager
def _ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    if request.param == "real":
        plane: ControlPlane = request.getfixturevalue("plane")
        yield Ground(
            plane.access,
            plane.access_as,
            plane.compact,
            real=True,
            authority=plane.authority,
            denials=plane.denials,
        )
        return
    with running_fake() as running:
        yield Ground(
            running.access,
            lambda user: running.do(lambda fake: fake.access_as(user)),
            lambda: running.do(lambda fake: fake.compact()),
            real=False,
            denials=lambda: running.do(_denials),
        )
