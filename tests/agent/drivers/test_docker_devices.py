"""What device plugins give a container."""

from __future__ import annotations

from typing import Any

import pytest

from agent.drivers.base import TaskConfig, TaskDevice, TaskMount, TaskPaths
from agent.drivers.docker_config import ConfigRefusedError, container_spec
from agent.drivers.docker_policy import DockerPolicy, VolumesPolicy


def host(
    config: dict[str, Any] | None = None, policy: DockerPolicy | None = None, **changes: Any
) -> Any:
    task = TaskConfig(
        id="a/t",
        alloc_id="a",
        task="t",
        namespace="default",
        job_id="j",
        group="g",
        config={"image": "i:1", **(config or {})},
        paths=TaskPaths(alloc="/a/alloc", task="/a/t", local="/a/t/l", secrets="/a/t/s", logs="/l"),
        **changes,
    )
    return container_spec(task, policy or DockerPolicy(), image="sha256:1").body["HostConfig"]


NODE = TaskDevice(host_path="/dev/acme0", task_path="/dev/gpu", permissions="rw")
IN_CONTAINER = {
    "PathOnHost": "/dev/acme0",
    "PathInContainer": "/dev/gpu",
    "CgroupPermissions": "rw",
}


def test_device_nodes_come_in_with_their_permissions_and_need_no_privilege() -> None:
    assert host(devices=[NODE])["Devices"] == [IN_CONTAINER]


def test_what_the_job_itself_asks_for_needs_privilege_as_before() -> None:
    own = {"devices": [{"host_path": "/dev/fuse"}]}
    with pytest.raises(ConfigRefusedError, match="allow_privileged"):
        host(own, devices=[NODE])
    both = host(own, DockerPolicy(allow_privileged=True), devices=[NODE])["Devices"]
    assert [one["PathOnHost"] for one in both] == ["/dev/fuse", "/dev/acme0"]


@pytest.mark.parametrize("enabled", [False, True])
def test_mounts_come_in_whether_or_not_jobs_may_mount_paths_of_the_host(enabled: bool) -> None:
    policy = DockerPolicy(volumes=VolumesPolicy(enabled=enabled))
    mount = TaskMount(host_path="/opt/acme", task_path="/usr/lib/acme", read_only=True)
    assert host(policy=policy, mounts=[mount])["Mounts"] == [
        {"Type": "bind", "Source": "/opt/acme", "Target": "/usr/lib/acme", "ReadOnly": True}
    ]


def test_a_task_with_nvidia_gpus_runs_under_nvidias_runtime() -> None:
    gpus = {"NVIDIA_VISIBLE_DEVICES": "GPU-1"}
    assert host(device_env=gpus)["Runtime"] == "nvidia"
    assert host(policy=DockerPolicy(nvidia_runtime="nv"), device_env=gpus)["Runtime"] == "nv"
    assert host({"runtime": "runc"}, device_env=gpus)["Runtime"] == "runc"
    # The variable alone, from the job, gives no GPU.
    assert "Runtime" not in host(env=gpus)
