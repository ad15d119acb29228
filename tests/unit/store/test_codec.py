import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import full_mesh, node, task_placement
from support.sites import random_extras, random_labels, random_site, random_taints

from scheduler.model.execution import LaunchOrder, LaunchTask, StopOrder
from scheduler.model.job import LauncherKind
from scheduler.model.lifecycle import EndCause
from scheduler.model.plan import FunnelStep, Reason, ReasonCode, Waiting
from scheduler.model.quantity import AttemptId, GpuId, JobId, NodeId, TenantId
from scheduler.model.site import ANYWHERE, Site
from scheduler.store import codec

WORDS = st.text(st.characters(codec="utf-8"), max_size=20)
SECONDS = st.floats(0, 1e9, allow_nan=False)
LAUNCHES = st.builds(
    LaunchOrder,
    attempt_id=WORDS.map(AttemptId),
    job_id=WORDS.map(JobId),
    tenant=WORDS.map(TenantId),
    job_name=WORDS,
    number=st.integers(1, 1000),
    epoch=st.integers(0, 2**53),
    tasks=st.lists(
        st.builds(
            LaunchTask,
            task_index=st.integers(0, 99),
            node_id=WORDS.map(NodeId),
            node_name=WORDS,
            gpu_ids=st.lists(WORDS.map(GpuId), max_size=3).map(tuple),
            simulated=st.booleans(),
            cpu_milli=st.integers(0, 10**6),
            member=WORDS,
            memory_mib=st.integers(0, 10**6),
        ),
        max_size=3,
    ).map(tuple),
    processes=st.integers(1, 8),
    command=st.lists(WORDS, min_size=1, max_size=3).map(tuple),
    env=st.lists(st.tuples(WORDS, WORDS), max_size=3).map(tuple),
    launcher=st.sampled_from(LauncherKind),
    stop_signal=st.just("SIGTERM"),
    grace_s=SECONDS,
    max_runtime_s=st.none() | SECONDS,
    workdir=st.none() | WORDS,
    image=st.none() | WORDS,
)


@given(LAUNCHES)
def test_a_launch_order_comes_back_equal(order: LaunchOrder) -> None:
    assert codec.launch_order(codec.text(order)) == order


@given(st.sampled_from(EndCause), SECONDS)
def test_a_stop_order_comes_back_equal(cause: EndCause, grace_s: float) -> None:
    order = StopOrder(AttemptId("a-1"), 3, cause, grace_s)
    assert codec.stop_order(codec.text(order)) == order


def test_placements_and_links_come_back_equal() -> None:
    tasks = (
        task_placement(node("a"), (0, 3)),
        task_placement(node("b", gpus=0), (), task_index=1, cpu_milli=0, memory_mib=0),
    )
    assert codec.placement_tasks(codec.text(tasks)) == tasks
    assert codec.links(codec.text(full_mesh(4))) == full_mesh(4)


@given(WORDS, st.sampled_from(ReasonCode), st.floats(0, 1e12))
def test_a_reason_record_comes_back_equal(message: str, code: ReasonCode, amount: float) -> None:
    record = Waiting(
        class_key="k",
        reasons=(Reason(code, message, "gpus", 8, amount, 4), Reason(code, message)),
        funnel=(FunnelStep("model", 3), FunnelStep("free", 0)),
    )
    assert codec.waiting(codec.text(record)) == record


def test_equal_mappings_give_equal_text() -> None:
    assert codec.text({"b": 1, "a": [2.5]}) == codec.text({"a": [2.5], "b": 1})


@pytest.mark.parametrize("seed", range(50))
def test_sites_and_further_resources_come_back_equal(seed: int) -> None:
    rng = random.Random(seed)
    site, labels, taints = random_site(rng), random_labels(rng, "a"), random_taints(rng)
    extras = random_extras(rng)
    assert codec.site(codec.site_text(site)) == site
    assert codec.labels(codec.text(labels)) == labels
    assert codec.taints(codec.text(taints)) == taints
    assert codec.extras(codec.text(extras)) == extras


def test_anywhere_takes_no_room_and_no_terms_are_not_no_demand() -> None:
    assert codec.site_text(Site()) == ""
    assert codec.site("") == ANYWHERE
    assert codec.site(codec.site_text(Site(terms=()))) == Site(terms=())


def test_a_task_placed_before_further_resources_holds_none() -> None:
    (task,) = codec.placement_tasks(
        '[{"task_index":0,"node_id":"n","gpu_ids":[],"cpu_milli":1,"memory_mib":2}]'
    )
    assert task.extras == ()
    held = replace(task, extras=(("pods", 1),))
    assert codec.placement_tasks(codec.text((held,))) == (held,)
