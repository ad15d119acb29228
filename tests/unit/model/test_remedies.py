from __future__ import annotations

import re

from support.tree import documentation

from scheduler.model.plan import REMEDIES, ReasonCode


def test_every_reason_has_its_remedy_as_the_page_says_it() -> None:
    page = documentation()["docs/reference/reasons.md"]
    rows = re.findall(r"^\| `([a-z-]+)` \| .+ \| (.+) \|$", page, re.MULTILINE)
    assert dict(rows) == {code.value: REMEDIES[code] for code in ReasonCode}
