"""A task and a policy in, the daemon's create call out."""

from __future__ import annotations

from typing import Any

import pytest

from agent.drivers.base import TaskConfig, TaskPaths
from agent.drivers.docker_config import (
    ConfigRefusedError,
    ContainerSpec,
    config_faults,
    container_spec,
)
from agent.drivers.docker_policy import AllowedModes, DockerPolicy, TaskAuth, VolumesPolicy
from nomadpy.models.resources import (
    AllocatedCpuResources,
    AllocatedMemoryResources,
    AllocatedTaskResources,
    NetworkResource,
    Port,
    PortMapping,
)

ROOT = "/allocs/a1"


def task(config: dict[str, Any], **changes: Any) -> TaskConfig:
    values: dict[str, Any] = {
        "id": "a1/web",
        "alloc_id": "a1",
        "task": "web",
        "namespace": "default",
        "job_id": "shop",
        "group": "front",
        "node_name": "n1",
        "config": {"image": "i:1", **config},
        "env": {
            "NOMAD_ALLOC_DIR": f"{ROOT}/alloc",
            "DATA": f"{ROOT}/web/local/data",
            "OTHER": f"{ROOT}/web/localized",
        },
        "resources": AllocatedTaskResources(
            cpu=AllocatedCpuResources(cpu_shares=500),
            memory=AllocatedMemoryResources(memory_mb=256, memory_max_mb=512),
        ),
        "ports": [
            PortMapping(label="http", value=20001, to=8080, host_ip="10.0.0.1"),
            PortMapping(label="admin", value=20002, host_ip="10.0.0.1"),
        ],
        "paths": TaskPaths(
            alloc=f"{ROOT}/alloc",
            task=f"{ROOT}/web",
            local=f"{ROOT}/web/local",
            secrets=f"{ROOT}/web/secrets",
            logs=f"{ROOT}/alloc/logs",
        ),
    }
    values.update(changes)
    return TaskConfig(**values)


def spec(
    config: dict[str, Any], policy: DockerPolicy | None = None, **changes: Any
) -> ContainerSpec:
    return container_spec(
        task(config, **changes), policy or DockerPolicy(), image="sha256:1", core_mhz=2000
    )


def host(config: dict[str, Any], policy: DockerPolicy | None = None, **changes: Any) -> Any:
    return spec(config, policy, **changes).body["HostConfig"]


def test_the_plain_case_binds_the_three_folders_and_limits_resources() -> None:
    body = spec({"command": "serve", "args": ["-p", "1"]}).body
    assert body["Image"] == "sha256:1"
    assert body["Cmd"] == ["serve", "-p", "1"]
    assert body["HostConfig"]["Binds"] == [
        f"{ROOT}/alloc:/alloc",
        f"{ROOT}/web/local:/local",
        f"{ROOT}/web/secrets:/secrets",
    ]
    assert body["HostConfig"]["Memory"] == 512 * 1024 * 1024
    assert body["HostConfig"]["MemoryReservation"] == 256 * 1024 * 1024
    assert body["HostConfig"]["MemorySwap"] == 512 * 1024 * 1024
    assert body["HostConfig"]["CpuShares"] == 500
    assert body["HostConfig"]["NetworkMode"] == "bridge"
    assert body["HostConfig"]["CapDrop"] == ["ALL"]
    assert "NET_RAW" not in body["HostConfig"]["CapAdd"]
    assert body["Labels"]["com.hashicorp.nomad.task_group_name"] == "front"
    assert "ExposedPorts" not in body


def test_the_environment_tells_the_folders_as_the_container_sees_them() -> None:
    env = spec({}).body["Env"]
    assert "NOMAD_ALLOC_DIR=/alloc" in env
    assert "NOMAD_TASK_DIR=/local" in env
    assert "NOMAD_SECRETS_DIR=/secrets" in env
    assert "DATA=/local/data" in env
    assert f"OTHER={ROOT}/web/localized" in env


def test_ports_are_published_where_the_network_is_the_containers_own() -> None:
    found = spec({"ports": ["http", "admin"]})
    assert found.ports == {"http": 8080, "admin": 20002}
    assert found.body["HostConfig"]["PortBindings"]["8080/tcp"] == [
        {"HostIp": "10.0.0.1", "HostPort": "20001"}
    ]
    assert "8080/udp" in found.body["ExposedPorts"]
    shared = spec({"ports": ["http"], "network_mode": "host"})
    assert "PortBindings" not in shared.body["HostConfig"]
    with pytest.raises(ConfigRefusedError, match="Port 'nope' not found, check network block"):
        spec({"ports": ["nope"]})


def test_ports_of_the_tasks_own_network_are_published_as_port_map_says() -> None:
    resources = AllocatedTaskResources(
        networks=[
            NetworkResource(
                ip="10.0.0.1", reserved_ports=[Port(label="db", value=5432)], dynamic_ports=[]
            )
        ]
    )
    assert spec({}, resources=resources).ports == {"db": 5432}
    mapped = spec({"port_map": [{"db": 15432}]}, resources=resources)
    assert "15432/tcp" in mapped.body["HostConfig"]["PortBindings"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"privileged": True}, "privileged mode is disabled"),
        ({"devices": [{"host_path": "/dev/sda"}]}, "allow_privileged"),
        ({"security_opt": ["seccomp=unconfined"]}, "allow_privileged"),
        ({"cap_add": ["sys_admin", "CAP_NET_RAW"]}, r"\[net_raw, sys_admin\]"),
        ({"pid_mode": "host"}, "pid_mode 'host'"),
        ({"ipc_mode": "container:x"}, "ipc_mode"),
        ({"userns_mode": "host"}, "userns_mode"),
        ({"uts_mode": "host"}, "uts_mode"),
        ({"runtime": "evil"}, "runtime 'evil' is not allowed"),
        ({"volumes": ["/var/run/docker.sock:/d.sock"]}, "volumes are not enabled"),
        ({"volumes": ["../../other:/x"]}, "volumes are not enabled"),
        ({"volumes": ["data:/x"], "volume_driver": "nfs"}, "volume driver"),
        ({"mount": {"type": "bind", "source": "/etc", "target": "/x"}}, "volumes are not enabled"),
        ({"mounts": [{"type": "volume", "source": "v", "target": "/x"}]}, "cannot mount volume"),
        ({"cpu_hard_limit": True, "cpu_cfs_period": 5}, "cpu_cfs_period"),
    ],
)
def test_what_reaches_out_of_the_container_is_refused_by_default(
    config: dict[str, Any], reason: str
) -> None:
    assert config_faults({"image": "i", **config}) == []
    with pytest.raises(ConfigRefusedError, match=reason):
        spec(config)


def test_an_operator_can_allow_it() -> None:
    policy = DockerPolicy(
        allow_privileged=True,
        allow_caps=["all"],
        volumes=VolumesPolicy(enabled=True),
        allow_runtimes=["kata"],
    )
    assert host({"privileged": True}, policy)["Privileged"] is True
    assert "SYS_ADMIN" in host({"cap_add": ["sys_admin"]}, policy)["CapAdd"]
    assert host({"runtime": "kata"}, policy)["Runtime"] == "kata"
    assert "/etc:/x:ro" in host({"volumes": ["/etc:/x:ro"]}, policy)["Binds"]
    assert host({"devices": {"host_path": "/dev/fuse"}}, policy)["Devices"] == [
        {"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"}
    ]
    shared = DockerPolicy(allowed_modes=AllowedModes(pid=["host"]))
    assert host({"pid_mode": "host"}, shared)["PidMode"] == "host"


def test_paths_inside_the_allocation_may_be_mounted_unless_a_link_leads_out() -> None:
    assert f"{ROOT}/web/local/d:/x" in host({"volumes": ["local/d:/x"]})["Binds"]
    assert f"{ROOT}/alloc/d:/x" in host({"volumes": ["../alloc/d:x"]})["Binds"]
    with pytest.raises(ConfigRefusedError):
        container_spec(
            task({"volumes": ["local/d:/x"]}),
            DockerPolicy(),
            image="i",
            resolve=lambda path: "/etc" if path.endswith("/d") else path,
        )
    with pytest.raises(ConfigRefusedError):
        # A neighbour whose name begins with ours.
        host({"volumes": ["/allocs/a10/x:/x"]})


def test_mounts_of_every_kind_are_translated() -> None:
    policy = DockerPolicy(volumes=VolumesPolicy(enabled=True))
    config = {
        "mount": [
            {"type": "tmpfs", "target": "/t", "tmpfs_options": [{"size": "1000", "mode": 511}]},
            {
                "type": "volume",
                "target": "/v",
                "source": "vol",
                "volume_options": {
                    "no_copy": True,
                    "driver_config": [{"name": "d", "options": [{"a": "b"}]}],
                },
            },
            {"type": "bind", "target": "/b", "source": "local/x", "readonly": "true"},
        ]
    }
    assert host(config, policy)["Mounts"] == [
        {
            "Type": "tmpfs",
            "Target": "/t",
            "ReadOnly": False,
            "TmpfsOptions": {"SizeBytes": 1000, "Mode": 511},
        },
        {
            "Type": "volume",
            "Target": "/v",
            "ReadOnly": False,
            "Source": "vol",
            "VolumeOptions": {
                "NoCopy": True,
                "Labels": {},
                "DriverConfig": {"Name": "d", "Options": {"a": "b"}},
            },
        },
        {"Type": "bind", "Target": "/b", "ReadOnly": True, "Source": f"{ROOT}/web/local/x"},
    ]


def test_the_smaller_options_reach_the_daemon() -> None:
    found = spec(
        {
            "entrypoint": ["/init"],
            "hostname": "h",
            "labels": [{"a": "b"}],
            "dns_servers": ["1.1.1.1"],
            "extra_hosts": ["x:1.2.3.4"],
            "ulimit": {"nofile": "100:200", "core": "-1"},
            "sysctl": [{"net.core.somaxconn": "1000"}],
            "shm_size": "1000000",
            "readonly_rootfs": True,
            "init": True,
            "tty": True,
            "interactive": True,
            "work_dir": "/w",
            "pids_limit": 20,
            "cap_drop": ["chown"],
            "cpu_hard_limit": True,
            "memory_hard_limit": 1024,
            "healthchecks": {"disable": True},
            "logging": {"type": "syslog", "config": [{"tag": "x"}]},
            "tmpfs": ["/run:size=1m"],
            "network_mode": "backend",
            "network_aliases": ["web"],
            "group_add": ["5"],
        },
        user="1000",
    )
    body, hosted = found.body, found.body["HostConfig"]
    assert (body["Entrypoint"], body["Hostname"], body["Tty"]) == (["/init"], "h", True)
    assert (body["WorkingDir"], body["User"], body["OpenStdin"]) == ("/w", "1000", True)
    assert body["Labels"]["a"] == "b"
    assert body["Healthcheck"] == {"Test": ["NONE"]}
    assert body["NetworkingConfig"]["EndpointsConfig"] == {"backend": {"Aliases": ["web"]}}
    assert hosted["Ulimits"] == [
        {"Name": "nofile", "Soft": 100, "Hard": 200},
        {"Name": "core", "Soft": -1, "Hard": -1},
    ]
    assert hosted["ShmSize"] == 1_000_000
    assert hosted["PidsLimit"] == 20
    assert hosted["Tmpfs"] == {"/run": "size=1m"}
    assert "CHOWN" not in hosted["CapAdd"]
    assert (hosted["CpuPeriod"], hosted["CpuQuota"]) == (100_000, 25_000)
    assert hosted["Memory"] == 1024 * 1024 * 1024
    assert hosted["LogConfig"] == {"Type": "syslog", "Config": {"tag": "x"}}
    assert found.logs_readable is False
    assert found.tty


def test_reserved_cores_become_a_cpu_set() -> None:
    cores = AllocatedTaskResources(cpu=AllocatedCpuResources(cpu_shares=1, reserved_cores=[1, 3]))
    assert host({}, resources=cores)["CpusetCpus"] == "1,3"
    assert host({}, resources=cores)["CpuShares"] == 2


def test_every_fault_of_a_config_is_named() -> None:
    found = config_faults({"imag": "x", "args": {"a": 1}, "tty": "perhaps", "port_map": {"a": "b"}})
    assert len(found) == 5
    assert "image is required" in found
    assert "unknown key 'imag'" in found
    later = config_faults(
        {
            "image": "i",
            "image_pull_timeout": "soon",
            "mount": {"type": "magic", "target": "/x"},
            "volumes": ["nowhere"],
            "ulimit": {"nofile": "many"},
            "ports": ["a"],
            "port_map": {"a": 1},
        }
    )
    assert len(later) == 5


def test_credentials_are_not_printed() -> None:
    assert "hunter2" not in repr(TaskAuth(username="u", password="hunter2"))
