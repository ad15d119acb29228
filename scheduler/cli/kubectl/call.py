"""What one command works with: which daemon, which namespace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from scheduler.cli.context import Session
from scheduler.cli.kubectl import namespaces

if TYPE_CHECKING:
    from api.client import Client


@dataclass(frozen=True, slots=True)
class Call:
    """One command's surroundings.

    Attributes:
        session: finds the daemon as `haversack` does.
        given: the namespace that the command line names; "" if none.
    """

    session: Session
    given: str = ""

    @property
    def namespace(self) -> str:
        """The namespace to look in.

        Raises:
            UsageError: it stands in a kubeconfig that cannot be read.
        """
        return self.given or namespaces.current(self.session.environ)

    def connect(self) -> Client:
        """A client that sees what the token may see. Raises what `Session.connect` raises."""
        return self.session.connect()

    def connect_for_writing(self) -> Client:
        """A client whose new jobs belong to the namespace; raises as `connect`."""
        return replace(self.session, tenant=self.namespace).connect()


def call_of(context: typer.Context) -> Call:
    """What the global options made."""
    call = context.obj
    assert isinstance(call, Call)
    return call
