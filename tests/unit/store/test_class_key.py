from dataclasses import replace

from support.clusters import shape

from scheduler.model.job import JobShape
from scheduler.model.quantity import DEFAULT_QUEUE, DEFAULT_TENANT
from scheduler.model.site import Site, Toleration, port_amounts
from scheduler.store.jobs import class_key

PLAIN = shape(2, tasks=3, models=("H100",), pool="batch")


def key(what: JobShape) -> str:
    return class_key(DEFAULT_TENANT, DEFAULT_QUEUE, what)


def test_jobs_that_may_sit_elsewhere_or_take_other_things_are_of_other_classes() -> None:
    shapes = [
        PLAIN,
        replace(PLAIN, site=Site(selector=(("zone", "a"),))),
        replace(PLAIN, site=Site(selector=(("zone", "b"),))),
        replace(PLAIN, site=Site(tolerations=(Toleration("gpu"),))),
        replace(PLAIN, site=Site(terms=())),
        replace(PLAIN, extras=(("pods", 1),)),
        replace(PLAIN, extras=port_amounts("TCP", 80)),
        replace(PLAIN, tasks_max=9),
        replace(PLAIN, tasks_max=9, extras=(("pods", 1),)),
    ]
    assert len({key(each) for each in shapes}) == len(shapes)


def test_the_key_of_a_job_without_them_is_what_it_always_was() -> None:
    assert key(PLAIN) == "78c6824ea64c4f32580a77d3ab91880f"
    assert key(replace(PLAIN, site=Site())) == key(PLAIN)
