"""Deterministic fault simulation: the real daemon against a small world that fails on purpose.

One thread, virtual time, one seed. `schedule` plays one schedule: users (`users`) submit and cancel
while faults (`chance`) strike; `daemon` runs conductor, cycle, applier, watcher and reconciler on
the real tables (`store`) against nodes and processes (`world`); after each step `invariants`
compares what the store says with what the world does. `bugs` plants known mistakes, to see that
they are found. In the manner of FoundationDB's simulation and TigerBeetle's VOPR.

`python -m scheduler.simulator.faults --seed 7` replays a schedule and prints its trace.
"""
