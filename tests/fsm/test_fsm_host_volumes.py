"""Host volumes in the state: what is stored, how a volume follows its node, and which claims placements make."""

from __future__ import annotations

from typing import Any

import pytest
from fsm.fsm_samples import Machine, alloc, job, node, plan
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.errors import ConflictError, InvalidRequestError, NotFoundError
from nomadpy.fsm import commands as c
from nomadpy.models.host_volume import HostVolume, TaskGroupHostVolumeClaim
from nomadpy.models.job import TaskGroup, VolumeRequest
from nomadpy.models.node import HostVolumeInfo, Node
from nomadpy.models.plan import AllocStop
from nomadpy.models.task import Task


def volume(
    volume_id: str = "v1", name: str = "data", node_id: str = "n1", **more: Any
) -> HostVolume:
    fields: dict[str, Any] = {"namespace": "default", "plugin_id": "mkdir", "state": "pending"}
    return HostVolume(**{**fields, "id": volume_id, "name": name, "node_id": node_id, **more})


def holder(node_id: str = "n1", **ids: str) -> Node:
    """A node that tells of volumes, name to id."""
    there = {
        name: HostVolumeInfo(name=name, path=f"/volumes/{volume_id}", id=volume_id)
        for name, volume_id in ids.items()
    }
    return node(node_id, host_volumes=there)


def request(source: str = "data", **more: Any) -> VolumeRequest:
    return VolumeRequest(name="v", type="host", source=source, **more)


def user(job_id: str = "db", **more: Any) -> Any:
    group = TaskGroup(
        name="group",
        count=2,
        tasks=[Task(name="task", driver="raw_exec")],
        volumes={"v": request(**more)},
    )
    return job(job_id, task_groups=[group])


def with_volume(log_format: int = 3, **more: Any) -> Machine:
    """A node with the volume data, and a job that wants it."""
    m = Machine()
    m.run(c.ClusterMetadataSet(cluster_id="c1", log_format=log_format))
    m.run(c.NodeRegister(node=holder(data="v1")))
    m.run(c.HostVolumeUpsert(volumes=[volume(state="ready")]))
    m.run(c.JobRegister(job=user(**more)))
    return m


def place(m: Machine, alloc_id: str, previous: str = "", **more: Any) -> None:
    stops = []
    if previous:
        stops = [AllocStop(alloc_id=previous, node_id="n1", description="moved")]
    placed = alloc(alloc_id, "db", name="db.group[0]", previous_allocation=previous, **more)
    m.run(c.PlanResults(plans=[plan(placed, job_id="db", stops=stops)]))


def claims(m: Machine) -> list[TaskGroupHostVolumeClaim]:
    return list(m.state.volume_claims())


def test_a_volume_is_stored_with_its_indexes_and_times_and_keeps_those_of_its_creation() -> None:
    m = Machine()
    assert m.state.table_index("host_volumes") == 1
    assert m.run(c.HostVolumeUpsert(volumes=[volume()])) == ["v1"]
    first, made_ns = m.state.host_volume("default", "v1"), m.now_ns
    assert first is not None
    assert (first.create_index, first.modify_index) == (1, 1)
    assert (first.create_time, first.modify_time) == (made_ns, made_ns)
    m.run(c.HostVolumeUpsert(volumes=[volume(state="ready", host_path="/x", create_index=1)]))
    then = m.state.host_volume("default", "v1")
    assert then is not None
    assert (then.create_index, then.modify_index, then.create_time) == (1, 2, made_ns)
    assert (then.state, then.host_path, then.modify_time) == ("ready", "/x", m.now_ns)
    assert m.state.table_index("host_volumes") == 2


def test_a_node_has_one_volume_of_a_name_in_a_namespace() -> None:
    m = Machine()
    m.run(c.HostVolumeUpsert(volumes=[volume(), volume("v2", "logs"), volume("v3", node_id="n2")]))
    error = m.refused(c.HostVolumeUpsert(volumes=[volume("v4", "more"), volume("v5")]))
    assert isinstance(error, ConflictError)
    assert error.status == 400
    assert 'node n1 has a volume "data" in namespace "default" already: v1' in error.message
    assert m.state.host_volume("default", "v4") is None


def test_a_volume_in_no_namespace_or_one_that_was_deleted_meanwhile_is_refused() -> None:
    m = Machine()
    error = m.refused(c.HostVolumeUpsert(volumes=[volume(namespace="prod")]))
    assert isinstance(error, InvalidRequestError)
    assert isinstance(
        m.refused(c.HostVolumeUpsert(volumes=[volume(create_index=7)])), NotFoundError
    )


def test_a_volume_follows_its_node() -> None:
    m = Machine()
    m.run(c.NodeRegister(node=node(status="ready")))
    m.run(c.HostVolumeUpsert(volumes=[volume(), volume("v2", "logs", state="ready")]))

    def states() -> list[tuple[str, str]]:
        return [(v.state, v.host_path) for v in m.state.host_volumes_by_node("n1")]

    assert states() == [("pending", ""), ("ready", "")]
    m.run(c.NodeRegister(node=holder(data="other")))
    # What a node does not have any more is not ready, whatever was said of it.
    assert states() == [("pending", ""), ("unavailable", "")]
    m.run(c.NodeRegister(node=holder(data="v1", logs="v2")))
    assert states() == [("ready", "/volumes/v1"), ("ready", "/volumes/v2")]
    index = m.index
    m.run(c.NodeRegister(node=holder(data="v1", logs="v2")))
    assert m.state.table_index("host_volumes") == index
    for away in ("down", "disconnected"):
        m.run(c.NodeStatus(node_id="n1", status=away))
        assert [state for state, _ in states()] == ["unavailable", "unavailable"]
        m.run(c.NodeStatus(node_id="n1", status="ready"))
        assert states() == [("ready", "/volumes/v1"), ("ready", "/volumes/v2")]
    m.run(c.NodeDeregister(node_ids=["n1"]))
    assert [state for state, _ in states()] == ["unavailable", "unavailable"]


def test_a_volume_that_is_being_deleted_does_not_come_back_while_its_node_still_tells_of_it() -> (
    None
):
    m = with_volume()
    m.run(c.HostVolumeUpsert(volumes=[volume(state="unavailable", deleting=True)]))
    m.run(c.NodeRegister(node=holder(data="v1")))
    assert [v.state for v in m.state.host_volumes_by_node("n1")] == ["unavailable"]
    m.run(c.HostVolumeUpsert(volumes=[volume(state="unavailable")]))
    m.run(c.NodeRegister(node=holder(data="v1")))
    assert [v.state for v in m.state.host_volumes_by_node("n1")] == ["ready"]


def test_a_volume_that_is_used_is_not_deleted_until_its_allocations_have_ended() -> None:
    m = with_volume()
    place(m, "a1")
    error = m.refused(c.HostVolumeDelete(namespace="default", ids=["v1"]))
    assert isinstance(error, ConflictError)
    assert error.message.startswith("volume v1 is in use by allocations: a1.")
    # That it shall stop is not that it has.
    stop = AllocStop(alloc_id="a1", node_id="n1", description="stopped")
    m.run(c.PlanResults(plans=[plan(job_id="db", stops=[stop])]))
    m.refused(c.HostVolumeDelete(namespace="default", ids=["v1"]))
    m.run(c.AllocClientUpdate(allocs=[alloc("a1", "db", client_status="complete")]))
    m.run(c.HostVolumeDelete(namespace="default", ids=["v1"]))
    assert m.state.host_volume("default", "v1") is None
    assert isinstance(m.refused(c.HostVolumeDelete(namespace="default", ids=["v1"])), NotFoundError)


def test_with_per_alloc_an_allocation_uses_the_volume_of_its_index_only() -> None:
    m = with_volume(per_alloc=True)
    m.run(c.HostVolumeUpsert(volumes=[volume("w0", "data[0]"), volume("w1", "data[1]")]))
    place(m, "a1")
    m.refused(c.HostVolumeDelete(namespace="default", ids=["w0"]))
    m.run(c.HostVolumeDelete(namespace="default", ids=["v1", "w1"]))


def test_a_sticky_volume_is_claimed_once_and_the_claim_goes_on_to_the_replacement() -> None:
    m = with_volume(sticky=True)
    place(m, "a1")
    (claim,) = claims(m)
    assert len(claim.id) == 36
    assert (claim.namespace, claim.job_id, claim.task_group_name) == ("default", "db", "group")
    assert (claim.alloc_id, claim.volume_id, claim.volume_name) == ("a1", "v1", "data")
    assert (claim.create_index, claim.modify_index) == (m.index, m.index)
    place(m, "a2", previous="a1")
    (after,) = claims(m)
    assert (after.id, after.alloc_id, after.create_index) == (claim.id, "a2", claim.create_index)
    assert after.modify_index == m.index
    # Another of the group beside it: the claim stays with the first.
    place(m, "a3")
    assert claims(m) == [after]


def test_a_claim_whose_allocation_is_over_is_taken_by_who_comes_to_the_volume() -> None:
    m = with_volume(sticky=True)
    place(m, "a1")
    m.run(c.JobDeregister(namespace="default", job_id="db"))
    m.run(c.AllocClientUpdate(allocs=[alloc("a1", "db", client_status="complete")]))
    assert [claim.alloc_id for claim in claims(m)] == ["a1"]
    m.run(c.JobRegister(job=user(sticky=True)))
    m.run(
        c.PlanResults(plans=[plan(alloc("a2", "db", name="db.group[0]"), job_id="db", version=2)])
    )
    assert [claim.alloc_id for claim in claims(m)] == ["a2"]


@pytest.mark.parametrize(
    ("log_format", "more"),
    [(2, {"sticky": True}), (3, {}), (3, {"sticky": True, "source": "elsewhere"})],
)
def test_no_claim_is_made_for_old_servers_for_volumes_that_are_not_sticky_or_not_there(
    log_format: int, more: dict[str, Any]
) -> None:
    m = Machine()
    m.run(c.ClusterMetadataSet(cluster_id="c1", log_format=log_format))
    m.run(c.NodeRegister(node=holder(data="v1")))
    m.run(c.JobRegister(job=user(**more)))
    place(m, "a1")
    assert claims(m) == []


def test_a_static_host_volume_is_not_claimed() -> None:
    m = with_volume(sticky=True)
    static = {"data": HostVolumeInfo(name="data", path="/srv")}
    m.run(c.NodeRegister(node=node(host_volumes=static)))
    place(m, "a1")
    assert claims(m) == []


@pytest.mark.parametrize(
    "command",
    [
        c.JobDeregister(namespace="default", job_id="db", purge=True),
        c.JobBatchPurge(jobs=[("default", "db")]),
    ],
)
def test_claims_go_with_their_job(command: c.Command) -> None:
    m = with_volume(sticky=True)
    place(m, "a1")
    assert claims(m)
    m.run(command)
    assert claims(m) == []


def test_claims_go_with_their_volume_and_one_by_one() -> None:
    m = with_volume(sticky=True)
    place(m, "a1")
    (claim,) = claims(m)
    m.run(c.VolumeClaimDelete(claim_id=claim.id))
    assert claims(m) == []
    assert isinstance(m.refused(c.VolumeClaimDelete(claim_id=claim.id)), NotFoundError)
    place(m, "a2")
    assert len(claims(m)) == 1
    for each in ("a1", "a2"):
        m.run(c.AllocClientUpdate(allocs=[alloc(each, "db", client_status="failed")]))
    m.run(c.HostVolumeDelete(namespace="default", ids=["v1"]))
    assert claims(m) == []


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["place", "end", "purge", "again", "forget"]),
            st.integers(0, 2),
            st.integers(0, 5),
        ),
        max_size=14,
    )
)
def test_a_group_holds_a_volume_once_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    m = Machine()
    m.run(c.ClusterMetadataSet(cluster_id="c1", log_format=3))
    for number in range(3):
        m.run(c.NodeRegister(node=holder(f"n{number}", data=f"v{number}")))
        m.run(
            c.HostVolumeUpsert(volumes=[volume(f"v{number}", node_id=f"n{number}", state="ready")])
        )
    m.run(c.JobRegister(job=user(sticky=True)))
    version, made = 0, 0
    for kind, which, pick in steps:
        allocs = [a for a in m.state.allocs() if a.client_status == "pending"]
        if kind == "place" and m.state.job("default", "db") is not None:
            made += 1
            placed = alloc(
                f"a{made:03d}",
                "db",
                name=f"db.group[{pick}]",
                node_id=f"n{which}",
                previous_allocation=allocs[pick % len(allocs)].id if allocs and pick % 2 else "",
            )
            m.run(c.PlanResults(plans=[plan(placed, job_id="db", version=version)]))
        elif kind == "end" and allocs:
            ended = alloc(allocs[pick % len(allocs)].id, "db", client_status="failed")
            m.run(c.AllocClientUpdate(allocs=[ended]))
        elif kind == "purge" and m.state.job("default", "db") is not None:
            m.run(c.JobDeregister(namespace="default", job_id="db", purge=True))
            assert claims(m) == []
        elif kind == "again":
            m.run(c.JobRegister(job=user(sticky=True)))
            version = m.state.job("default", "db").version
        elif kind == "forget" and claims(m):
            m.run(c.VolumeClaimDelete(claim_id=claims(m)[0].id))
        held = [(one.job_id, one.task_group_name, one.volume_id) for one in claims(m)]
        assert len(held) == len(set(held))
        for one in claims(m):
            at = m.state.alloc(one.alloc_id)
            assert at is not None
            assert at.node_id == one.volume_id.replace("v", "n")
