"""stub"""
from __future__ import annotations
class Auditor:
    def __init__(self, driver, world, memory):
        self.d = driver
    def check(self, daemons):
        return ()
    def unsettled(self):
        return [f"{r[0]} {r[1]}" for r in self.d.execute("SELECT id, state FROM jobs WHERE state NOT IN ('SUCCEEDED','FAILED','CANCELLED','HELD','QUARANTINED')")]
    def held(self):
        return []
