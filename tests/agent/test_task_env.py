"""The environment of a task and what `${...}` stands for."""

from __future__ import annotations

from typing import Any

import pytest
from agent_world import allocation, task
from hypothesis import given
from hypothesis import strategies as st

from agent.drivers.base import TaskPaths
from agent.task_env import TaskEnvironment, alloc_index, build, core_list
from nomadpy.models.allocation import Allocation
from nomadpy.models.node import Node
from nomadpy.models.resources import (
    AllocatedCpuResources,
    AllocatedMemoryResources,
    AllocatedResources,
    AllocatedSharedResources,
    AllocatedTaskResources,
    NetworkResource,
    Port,
    PortMapping,
)

PATHS = TaskPaths(
    alloc="/a/alloc", task="/a/t", local="/a/t/local", secrets="/a/t/secrets", logs="/a/l"
)
NODE = Node(
    id="n-1", name="box", datacenter="dc7", node_class="big", node_pool="gpu",
    attributes={"kernel.name": "linux"}, meta={"rack": "r1"}, cgroup_parent="nomad.slice",
)  # fmt: skip


def environment(alloc: Allocation, extra: dict[str, str] | None = None) -> TaskEnvironment:
    group = (alloc.job.task_groups or [])[0] if alloc.job else None
    assert group is not None
    chosen = (group.tasks or [])[0]
    return build(alloc, chosen, NODE, PATHS, region="eu", extra=extra or {})


def resources(**shared: Any) -> AllocatedResources:
    return AllocatedResources(
        tasks={
            "task": AllocatedTaskResources(
                cpu=AllocatedCpuResources(cpu_shares=500, reserved_cores=[0, 1, 2, 5]),
                memory=AllocatedMemoryResources(memory_mb=256, memory_max_mb=512),
            )
        },
        shared=AllocatedSharedResources(**shared),
    )


def test_a_task_learns_who_it_is_and_what_it_may_use() -> None:
    alloc = allocation(number=3, allocated_resources=resources(), job={"parent_id": "parent"})
    found = environment(alloc, {"NOMAD_TOKEN": "jwt"}).variables
    assert found == {
        "NOMAD_ALLOC_ID": alloc.id,
        "NOMAD_SHORT_ALLOC_ID": alloc.id[:8],
        "NOMAD_ALLOC_NAME": "web.g[2]",
        "NOMAD_ALLOC_INDEX": "2",
        "NOMAD_TASK_NAME": "task",
        "NOMAD_GROUP_NAME": "g",
        "NOMAD_JOB_ID": "web",
        "NOMAD_JOB_NAME": "web",
        "NOMAD_JOB_PARENT_ID": "parent",
        "NOMAD_DC": "dc7",
        "NOMAD_REGION": "eu",
        "NOMAD_NAMESPACE": "default",
        "NOMAD_PARENT_CGROUP": "nomad.slice",
        "NOMAD_CPU_LIMIT": "500",
        "NOMAD_CPU_CORES": "0-2,5",
        "NOMAD_MEMORY_LIMIT": "256",
        "NOMAD_MEMORY_MAX_LIMIT": "512",
        "NOMAD_ALLOC_DIR": "/a/alloc",
        "NOMAD_TASK_DIR": "/a/t/local",
        "NOMAD_SECRETS_DIR": "/a/t/secrets",
        "NOMAD_TOKEN": "jwt",
    }


def test_ports_of_the_group_and_of_old_networks_become_variables() -> None:
    network = NetworkResource(
        mode="host", ip="fe80::1", dynamic_ports=[Port(label="admin-ui", value=25000)]
    )
    ports = [PortMapping(label="http", value=20000, to=8080, host_ip="10.0.0.1")]
    found = environment(allocation(allocated_resources=resources(ports=ports, networks=[network])))
    variables = found.variables
    assert variables["NOMAD_PORT_http"] == variables["NOMAD_ALLOC_PORT_http"] == "8080"
    assert variables["NOMAD_HOST_PORT_http"] == "20000"
    assert variables["NOMAD_ADDR_http"] == variables["NOMAD_HOST_ADDR_http"] == "10.0.0.1:20000"
    assert variables["NOMAD_IP_http"] == variables["NOMAD_HOST_IP_http"] == "10.0.0.1"
    assert variables["NOMAD_PORT_admin_ui"] == "25000"
    assert variables["NOMAD_ADDR_admin_ui"] == "[fe80::1]:25000"


def test_the_nearest_meta_wins_and_the_jobs_env_wins_over_ours() -> None:
    alloc = allocation(
        task(
            meta={"b": "task", "we-ird.key": "x"}, env={"NOMAD_REGION": "mine", "A": "${meta.rack}"}
        ),
        group={"meta": {"a": "group", "b": "group"}},
        job={"meta": {"a": "job", "c": "${node.class}"}},
    )
    found = environment(alloc).variables
    assert found["NOMAD_META_a"] == found["NOMAD_META_A"] == "group"
    assert (found["NOMAD_META_B"], found["NOMAD_META_c"]) == ("task", "big")
    assert found["NOMAD_META_we_ird_key"] == "x"
    assert (found["NOMAD_REGION"], found["A"]) == ("mine", "r1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${node.unique.id}/${node.unique.name}", "n-1/box"),
        ("${node.datacenter} ${node.pool} ${node.region}", "dc7 gpu eu"),
        ("${attr.kernel.name} ${meta.rack}", "linux r1"),
        ('${NOMAD_TASK_DIR}/x ${env.NOMAD_DC} ${env["NOMAD_DC"]}', "/a/t/local/x dc7 dc7"),
        ("${unknown.thing} $HOME", "${unknown.thing} $HOME"),
    ],
)
def test_references_are_replaced_and_unknown_ones_stay(text: str, expected: str) -> None:
    it = environment(allocation())
    assert it.resolve(text) == expected
    assert it.resolve_all({"k": [text, 5, {"d": text}]}) == {"k": [expected, 5, {"d": expected}]}


def test_the_index_is_the_last_number_in_brackets() -> None:
    assert alloc_index("a[1].g[12]") == "12"
    assert alloc_index("strange") == ""


@given(st.sets(st.integers(0, 40)))
def test_core_lists_name_exactly_the_cores(cores: set[int]) -> None:
    named: set[int] = set()
    for part in core_list(list(cores)).split(","):
        if part:
            first, _, last = part.partition("-")
            named |= set(range(int(first), int(last or first) + 1))
    assert named == cores


def test_a_job_without_the_allocations_group_is_an_error() -> None:
    alloc = allocation(task_group="other")
    with pytest.raises(LookupError, match="no group 'other'"):
        environment(alloc)
