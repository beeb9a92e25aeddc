"""From a task's volume_mount blocks to directories of the node."""

from __future__ import annotations

from typing import Any

import pytest
from agent_world import allocation, task

from agent.drivers.base import TaskVolume
from agent.runner.context import SetupError
from agent.volume_mounts import task_volumes, uses
from nomadpy.models.job import VolumeRequest
from nomadpy.models.node import HostVolumeInfo
from nomadpy.models.task_blocks import VolumeMount

NODE = {
    "data": HostVolumeInfo(name="data", path="/srv/data"),
    "data[2]": HostVolumeInfo(name="data[2]", path="/srv/data2", id="v2"),
    "fixed": HostVolumeInfo(name="fixed", path="/srv/fixed", read_only=True),
}


def found(request: dict[str, Any] | None = None, **mount: Any) -> TaskVolume:
    wanted = {"name": "v", "type": "host", "source": "data", **(request or {})}
    asked = VolumeMount(**{"volume": "v", "destination": "/data", **mount})
    it = task(volume_mounts=[asked])
    alloc = allocation(it, number=3, group={"volumes": {"v": VolumeRequest(**wanted)}})
    (volume,) = task_volumes(alloc, it, NODE, lambda text: text.replace("${X}", "x"))
    return volume


def test_a_mount_leads_to_the_directory_of_the_node() -> None:
    assert found() == TaskVolume(name="data", path="/srv/data", target="/data")


def test_each_allocation_can_have_its_own_volume() -> None:
    assert found({"per_alloc": True}).path == "/srv/data2"


@pytest.mark.parametrize(
    ("request_", "mount"),
    [({"read_only": True}, {}), ({}, {"read_only": True}), ({"source": "fixed"}, {})],
)
def test_it_is_read_only_when_anyone_says_so(
    request_: dict[str, Any], mount: dict[str, Any]
) -> None:
    assert found(request_, **mount).read_only
    assert not found().read_only


def test_names_are_filled_in_and_propagation_is_taken_over() -> None:
    volume = found(destination="/d/${X}", propagation_mode="bidirectional", se_linux_label="z")
    assert (volume.target, volume.propagation, volume.selinux_label) == (
        "/d/x",
        "bidirectional",
        "z",
    )


@pytest.mark.parametrize(
    ("request_", "mount", "complaint"),
    [
        ({"source": "gone"}, {}, "volume 'gone' is not on this node"),
        ({"per_alloc": True, "source": "fixed"}, {}, r"volume 'fixed\[2\]' is not on this node"),
        ({"type": "csi"}, {}, "no csi volumes"),
        ({}, {"volume": "w"}, "volume 'w' is not a volume of the group"),
        ({}, {"destination": ""}, "'data': the mount has no destination"),
        ({}, {"propagation_mode": "shared"}, "'data': 'shared' is not a propagation mode"),
    ],
)
def test_what_cannot_be_mounted_is_named(
    request_: dict[str, Any], mount: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(SetupError, match=complaint):
        found(request_, **mount)


def test_a_volume_is_used_by_the_groups_that_ask_for_it() -> None:
    own = VolumeRequest(name="v", type="host", source="data", per_alloc=True)
    alloc = allocation(number=3, group={"volumes": {"v": own}})
    assert uses(alloc, "data[2]")
    assert not uses(alloc, "data")
    assert not uses(allocation(), "data")
