from __future__ import annotations

import pytest
from support.builders import node, virtual_node
from support.clock import ManualClock
from support.edge import Edge, edge_over

from scheduler.store.database import Database


@pytest.fixture
def edge(sqlite_database: Database, clock: ManualClock) -> Edge:
    """The API over a store with one real and one simulated node."""
    made = edge_over(sqlite_database, clock)
    made.office.nodes(node("n0", 4), virtual_node("v0", 8))
    return made
