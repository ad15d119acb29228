"""Whatever the fast packer makes of a cluster, the independent checker accepts and explains."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from support.clusters import NOW, make_job
from support.rooms import random_cluster, random_shape, room_of

from scheduler.allocation.explain import explain
from scheduler.allocation.gangs import gangs_of
from scheduler.allocation.gpu_choice import place
from scheduler.allocation.greedy import best_greedy
from scheduler.allocation.verify import check_safety, verify
from scheduler.allocation.worth import Worth
from scheduler.model.job import WaitingJob
from scheduler.model.node import PriceClass
from scheduler.model.plan import Plan, ReasonCode
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import PoolName, TenantId
from scheduler.model.terms import Headroom, Price, Quota, Terms

TENANTS = (TenantId("default"), TenantId("t1"), TenantId("t2"))


def random_terms(rng: random.Random) -> Terms:
    terms = Terms()
    if rng.random() < 0.5:
        cohort = rng.choice(["", "c"])
        quotas = tuple(
            Quota(tenant, rng.choice([500, 2_000, 8_000]), rng.choice([0, 4_000]), cohort)
            for tenant in rng.sample(TENANTS, 2)
        )
        terms = replace(terms, quotas=quotas)
    if rng.random() < 0.3:
        pool = rng.choice([None, PoolName("batch"), PoolName("default")])
        headroom = Headroom(pool, rng.choice([1, 2, 4]), rng.choice([1, 3]))
        terms = replace(terms, headroom=(headroom,))
    if rng.random() < 0.3:
        prices = (
            Price(PriceClass.RESERVED, 1.0),
            Price(PriceClass.SPOT, 0.2),
            Price(PriceClass.SPOT, 5.0, PoolName("batch")),
        )
        terms = replace(terms, prices=prices, price_weight=1.0)
    return terms


def random_queue(rng: random.Random) -> list[WaitingJob]:
    shapes = [random_shape(rng) for _ in range(5)]
    return [
        replace(make_job(f"{number}", rng.choice(shapes)), tenant=rng.choice(TENANTS))
        for number in range(rng.randint(0, 12))
    ]


def keyed(jobs: Sequence[WaitingJob]) -> dict[str, WaitingJob]:
    return {job.id: replace(job, class_key=f"{job.tenant} {job.shape!r}") for job in jobs}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 1_000_000))
def test_greedy_plans_are_sound_true_and_explained(seed: int) -> None:
    rng = random.Random(seed)
    jobs = list(keyed(random_queue(rng)).values())
    base = random_cluster(seed, random_terms(rng))
    snapshot = replace(base, waiting={job.id: job for job in jobs})
    ordered = [OrderedJob(job, rank, rng.uniform(0.1, 9.0)) for rank, job in enumerate(jobs)]
    gangs, worth = gangs_of(ordered), Worth(snapshot)
    packing = best_greedy(lambda: room_of(snapshot), gangs, worth)
    placements = place(snapshot.columns.table, gangs, packing, worth, "greedy")
    value = worth.total(gangs, packing)
    plan = Plan(
        snapshot_revision=snapshot.revision,
        placements=placements,
        waiting=explain(snapshot, placements, NOW),
        value=value,
        bound=max(value, 1e9),
    )
    assert verify(plan, snapshot, ordered) == ()
    assert check_safety(plan, snapshot, NOW) == ()
    if not placements and not snapshot.terms.price_weight:
        told = {reason.code for record in plan.waiting for reason in record.reasons}
        assert ReasonCode.BEHIND_PRIORITY not in told, "what fits was not left out"
