"""Real clusters for tests: daemons, tasks and containers that leave nothing behind, and short words to ask them things.

The processes themselves are nomadpy.demo's; here is what tests need more: jobs in a line, waiting for states, and a
cleanup that ends tasks also when the agent that held them is dead.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nomadpy.demo.client import ApiClient, until
from nomadpy.demo.cluster import Daemon, LocalCluster
from nomadpy.demo.dockerd import Docker
from nomadpy.demo.leftovers import end_processes_of, remove_folder

SECOND = 1_000_000_000
LABEL = "com.hashicorp.nomad.alloc_id"
TERMINAL = ("complete", "failed", "lost")

Json = dict[str, Any]


# -- jobs ---------------------------------------------------------------------------------------------------


def shell(script: str, *, name: str = "main", **fields: Any) -> Json:
    """A raw_exec task that runs a shell script."""
    return _task(name, "raw_exec", {"command": "/bin/sh", "args": ["-c", script]}, fields)


def contained(image: str, script: str, *, name: str = "main", **fields: Any) -> Json:
    """A docker task that runs a shell script; `Config` adds to its configuration."""
    config = {"image": image, "command": "sh", "args": ["-c", script], **fields.pop("Config", {})}
    return _task(name, "docker", config, fields)


def _task(name: str, driver: str, config: Json, fields: Json) -> Json:
    return {
        "Name": name,
        "Driver": driver,
        "Config": config,
        "KillTimeout": 2 * SECOND,
        "Resources": {"CPU": 20, "MemoryMB": 32},
        "LogConfig": {"MaxFiles": 3, "MaxFileSizeMB": 3},
        **fields,
    }


def group(*tasks: Json, name: str = "group", count: int = 1, **fields: Any) -> Json:
    """A task group that is healthy half a second after its start and asks for little disk."""
    return {
        "Name": name,
        "Count": count,
        "Tasks": list(tasks),
        "EphemeralDisk": {"SizeMB": 20},
        "Update": {"MinHealthyTime": SECOND // 2, "HealthCheck": "task_states"},
        **fields,
    }


def job(job_id: str, *groups: Json, kind: str = "service", **fields: Any) -> Json:
    """A job; a batch job has no update block."""
    if kind != "service":
        groups = tuple({k: v for k, v in g.items() if k != "Update"} for g in groups)
    return {
        "ID": job_id,
        "Name": job_id,
        "Type": kind,
        "Datacenters": ["dc1"],
        "TaskGroups": list(groups),
        **fields,
    }


def on_node(name: str) -> Json:
    """A constraint that names the node."""
    return {"LTarget": "${node.unique.name}", "RTarget": name, "Operand": "="}


# -- the cluster ---------------------------------------------------------------------------------------------


class RealCluster(LocalCluster):
    """A LocalCluster with the questions that tests ask. Leaving it ends daemons, tasks and containers."""

    def __init__(self, folder: Path, docker: Docker | None, **options: Any) -> None:
        super().__init__(folder, docker_host=docker.endpoint if docker else "", **options)
        self.docker = docker

    @property
    def any_api(self) -> ApiClient:
        """The API of some server that answers; one that was just started may not yet."""

        def look() -> ApiClient | None:
            servers = [d for d in self.running() if d.role == "server"]
            return next((self.api(d) for d in servers if _listens(d)), None)

        found: ApiClient = until(look, seconds=30, what="a server that answers")
        return found

    def daemon(self, name: str) -> Daemon:
        """A node by its name."""
        return next(d for d in (*self.servers, *self.clients) if d.name == name)

    def run(
        self, wanted: Json, *, api: ApiClient | None = None, count: int | None = None
    ) -> list[Json]:
        """Register a job, and wait until all its groups' counts run."""
        (api or self.any_api).put("/v1/jobs", {"Job": wanted})
        if count is None:
            count = sum(g["Count"] for g in wanted["TaskGroups"])
        return self.wait_allocs(wanted["ID"], "running", count)

    def allocs(self, job_id: str, *, status: str = "") -> list[Json]:
        """A job's allocations, of one client status when given."""
        found: list[Json] = self.any_api.get(f"/v1/job/{job_id}/allocations")
        return [a for a in found if not status or a["ClientStatus"] == status]

    def wait_allocs(
        self, job_id: str, status: str, count: int, *, seconds: float = 40
    ) -> list[Json]:
        """A job's allocations of a client status, as soon as there are exactly `count`."""

        def look() -> list[Json] | None:
            found = self.allocs(job_id, status=status)
            return found if len(found) == count else None

        try:
            result: list[Json] = until(look, seconds=seconds, what=f"{count} {status} of {job_id}")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.explain(job_id)}") from error
        return result

    def explain(self, job_id: str) -> str:
        """Where a job's allocations and evaluations stand, for a failing test's text."""
        lines = []
        for alloc in self.allocs(job_id):
            lines.append(
                f"{alloc['Name']} {alloc['ID'][:8]} on {alloc['NodeName']}: {alloc['DesiredStatus']}"
                f"/{alloc['ClientStatus']} {alloc['ClientDescription']}"
            )
            for name, state in (alloc["TaskStates"] or {}).items():
                lines += [f"  {name}: {e['Type']}: {e['DisplayMessage']}" for e in state["Events"]]
        for one in self.any_api.get(f"/v1/job/{job_id}/evaluations"):
            lines.append(
                f"evaluation {one['TriggeredBy']}: {one['Status']} {one.get('StatusDescription', '')}"
            )
            lines.append(f"  {one.get('FailedTGAllocs')}")
        return "\n".join(lines)

    def alloc(self, alloc_id: str) -> Json:
        """One allocation."""
        found: Json = self.any_api.get(f"/v1/allocation/{alloc_id}")
        return found

    def logs(self, alloc: Json, *, task: str = "main", kind: str = "stdout") -> str:
        """All of a task's log."""
        path = f"/v1/client/fs/logs/{alloc['ID']}"
        return str(self.any_api.get(path, task=task, type=kind, plain="true"))

    def wait_log(self, alloc: Json, text: str, *, seconds: float = 20, **which: str) -> str:
        """A task's log, as soon as it holds `text`."""

        def look() -> str:
            found = self.logs(alloc, **which)
            return found if text in found else ""

        return str(until(look, seconds=seconds, what=f"{text!r} in the log of {alloc['Name']}"))

    def shared(self, alloc: Json) -> Path:
        """The allocation's shared directory on this machine."""
        home = self.daemon(alloc["NodeName"]).folder
        return next(home.glob(f"data/**/{alloc['ID']}/alloc"))

    def stop_job(self, job_id: str, *, seconds: float = 30) -> None:
        """Stop a job, and wait until its tasks have ended."""
        self.any_api.delete(f"/v1/job/{job_id}")
        until(
            lambda: all(a["ClientStatus"] in TERMINAL for a in self.allocs(job_id)),
            seconds=seconds,
            what=f"{job_id} to stop",
        )

    def container(self, alloc: Json) -> Json:
        """What Docker says of the allocation's only container."""
        assert self.docker is not None
        with contextlib.closing(self.docker.client()) as client:
            found = client.containers.list(all=True, filters={"label": f"{LABEL}={alloc['ID']}"})
            assert len(found) == 1, f"{len(found)} containers of {alloc['ID']}"
            attrs: Json = found[0].attrs
            return attrs

    # -- the end ------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """End all that the cluster started, whoever holds it now, and remove its files."""
        self.stop()
        alloc_ids = {p.parent.name for p in self.folder.glob("*/data/**/alloc") if p.is_dir()}
        if self.docker is not None:
            _remove_containers(self.docker, alloc_ids)
        end_processes_of(self.folder)
        remove_folder(self.folder)
        _remove_cgroups(alloc_ids)


@contextlib.contextmanager
def real_cluster(docker: Docker | None = None, **options: Any) -> Iterator[RealCluster]:
    """A started cluster with a leader and ready nodes. options: as LocalCluster's."""
    folder = Path(tempfile.mkdtemp(prefix="nomadpy-e2e-"))
    cluster = RealCluster(folder, docker, **options)
    try:
        cluster.prepare()
        cluster.start()
        cluster.wait_leader()
        cluster.wait_nodes(len(cluster.clients))
        yield cluster
    finally:
        cluster.remove()


def _remove_containers(docker: Docker, alloc_ids: set[str]) -> None:
    with contextlib.closing(docker.client()) as client:
        for container in client.containers.list(all=True, ignore_removed=True):
            if container.labels.get(LABEL) in alloc_ids:
                container.remove(force=True, v=True)


def _remove_cgroups(alloc_ids: set[str]) -> None:
    for folder in cgroups_of(alloc_ids):
        with contextlib.suppress(OSError):
            folder.rmdir()


def cgroups_of(alloc_ids: set[str]) -> list[Path]:
    """Control groups of these allocations' tasks."""
    slices = Path("/sys/fs/cgroup").glob("**/nomad.slice/*")
    return [f for f in slices if any(one in f.name for one in alloc_ids)]


def _listens(daemon: Daemon) -> bool:
    host, _, port = daemon.http.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True
