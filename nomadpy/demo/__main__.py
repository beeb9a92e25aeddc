"""`./run demo`: a real cluster on this machine, a job in containers and processes, and the loss of its leader.

With --once it cleans up and ends; otherwise the cluster stays until Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nomadpy.clock import SystemClock
from nomadpy.demo.client import ApiClient, ApiError, until
from nomadpy.demo.cluster import Daemon, LocalCluster
from nomadpy.demo.dockerd import Docker, DockerUnavailableError, find_or_start, make_image
from nomadpy.demo.leftovers import end_processes_of, remove_folder

PROCESS_SCRIPT = 'echo "process $$ on $NOMAD_ALLOC_NAME"; i=0; while true; do i=$((i+1)); echo "tick $i"; sleep 1; done'
CONTAINER_SCRIPT = 'echo "container on $NOMAD_ALLOC_NAME"; i=0; while true; do i=$((i+1)); echo "tick $i"; sleep 1; done'


class Tour:
    """The steps of the demo, told as they happen."""

    def __init__(self, cluster: LocalCluster, docker: Docker | None) -> None:
        self._cluster = cluster
        self._docker = docker
        self._clock = SystemClock()
        self._began = self._clock.monotonic()

    def say(self, text: str = "") -> None:
        """One line, with the seconds since the start."""
        stamp = f"[{self._clock.monotonic() - self._began:5.1f} s] " if text else ""
        print(stamp + text, flush=True)

    def run(self) -> None:
        """Every step; raises what went wrong."""
        cluster = self._cluster
        cluster.prepare()
        self.say(f"A CA and certificates for servers, clients and you: {cluster.certificates}")
        started = self._clock.monotonic()
        cluster.start()
        leader = cluster.wait_leader()
        nodes = cluster.wait_nodes(len(cluster.clients))
        took = self._clock.monotonic() - started
        self.say(
            f"3 servers and {len(nodes)} agents are up in {took:.1f} s, all over mutual TLS; "
            f"{leader.name} leads"
        )
        api = cluster.api(cluster.clients[0])
        before = self._first_job(api)
        self._lose_the_leader(leader, before)

    def _first_job(self, api: ApiClient) -> dict[str, dict[str, Any]]:
        job = self.job()
        submitted = self._clock.monotonic()
        api.put("/v1/jobs", {"Job": job})
        allocs = self._wait_running(api, "demo", sum(g["Count"] for g in job["TaskGroups"]))
        took = self._clock.monotonic() - submitted
        self.say(
            f"Job demo, asked of an agent's API: {len(allocs)} allocations run {took:.1f} s later"
        )
        for alloc in allocs:
            where = self._identity(alloc)
            line = self._first_log_line(api, alloc)
            self.say(
                f"  {alloc['ID'][:8]}  {alloc['TaskGroup']:<10} on {alloc['NodeName']}  {where}  log: {line}"
            )
        return {a["ID"]: {"alloc": a, "identity": self._identity(a)} for a in allocs}

    def _lose_the_leader(self, leader: Daemon, before: dict[str, dict[str, Any]]) -> None:
        cluster = self._cluster
        self.say(f"Killing the leader, {leader.name} (pid {leader.pid}), with SIGKILL")
        leader.kill()
        killed = self._clock.monotonic()
        survivor = next(s for s in cluster.servers if s is not leader)
        api = cluster.api(survivor)
        second = {**self.job(), "ID": "second", "Name": "second"}
        second["TaskGroups"] = [second["TaskGroups"][-1]]

        def register() -> bool:
            return api.send("PUT", "/v1/jobs", {"Job": second}, timeout_s=10).status == 200

        until(register, seconds=20, what="the next write to be accepted")
        took = self._clock.monotonic() - killed
        successor = cluster.wait_leader()
        self.say(
            f"{successor.name} leads now; the next write was accepted {took:.1f} s after the kill"
        )
        self._wait_running(api, "second", 2)
        kept = 0
        for known in before.values():
            if self._identity(known["alloc"]) != known["identity"]:
                raise RuntimeError(f"allocation {known['alloc']['ID']} was disturbed")
            kept += 1
        self.say(f"All {kept} tasks kept their pids and containers; job second runs as well")

    # -- what the job is ------------------------------------------------------------------------------------

    def job(self) -> dict[str, Any]:
        """The demo's job: containers when there is a Docker daemon, and plain processes."""
        groups = []
        if self._docker is not None:
            config = {
                "image": make_image(self._docker),
                "command": "sh",
                "args": ["-c", CONTAINER_SCRIPT],
            }
            groups.append(_group("containers", "docker", config))
        config = {"command": "/bin/sh", "args": ["-c", PROCESS_SCRIPT]}
        groups.append(_group("processes", "raw_exec", config))
        return {
            "ID": "demo",
            "Name": "demo",
            "Type": "service",
            "Datacenters": ["dc1"],
            "TaskGroups": groups,
        }

    # -- looking ----------------------------------------------------------------------------------------------

    def _wait_running(self, api: ApiClient, job_id: str, count: int) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]] | None:
            allocs = api.get(f"/v1/job/{job_id}/allocations")
            running = [a for a in allocs if a["ClientStatus"] == "running"]
            return running if len(running) == count else None

        found: list[dict[str, Any]] = until(look, seconds=60, what=f"{count} running allocations")
        return found

    def _first_log_line(self, api: ApiClient, alloc: dict[str, Any]) -> str:
        def look() -> str:
            text = api.get(
                f"/v1/client/fs/logs/{alloc['ID']}", task="main", type="stdout", plain="true"
            )
            return str(text).split("\n", 1)[0]

        return str(until(look, seconds=10, what="a log line"))

    def _identity(self, alloc: dict[str, Any]) -> str:
        """`pid N` of a process or `container ID`: what must not change while the cluster is in trouble."""
        if alloc["TaskGroup"] == "containers":
            assert self._docker is not None
            client = self._docker.client()
            try:
                label = f"com.hashicorp.nomad.alloc_id={alloc['ID']}"
                found = client.containers.list(filters={"label": label})
                return f"container {found[0].id[:12]}" if found else "no container"
            finally:
                client.close()
        node = alloc["NodeName"]
        home = next(d for d in self._cluster.clients if d.name == node)
        api = self._cluster.api(home)
        line = self._first_log_line(api, alloc)
        pid = int(line.split()[1])
        alive = Path(f"/proc/{pid}").exists()
        return f"pid {pid}" if alive else f"pid {pid} is gone"

    def farewell(self) -> None:
        """What to try next."""
        daemon = self._cluster.clients[0]
        print("\nTry it, in another terminal:\n")
        for name, value in self._cluster.environment(daemon).items():
            print(f"  export {name}={value}")
        print("\n  ./run nomadpy job status demo")
        print("  ./run nomadpy node status")
        print("  ./run nomadpy server members")
        print("  ./run nomadpy operator raft list-peers")
        print(f"\nThe API: https://{daemon.http}   Logs and data: {self._cluster.folder}")
        print("Ctrl-C stops everything.\n", flush=True)


def _group(name: str, driver: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "Name": name,
        "Count": 2,
        "Update": {"MinHealthyTime": 1_000_000_000, "HealthCheck": "task_states"},
        "Tasks": [
            {
                "Name": "main",
                "Driver": driver,
                "Config": config,
                "KillTimeout": 2_000_000_000,
                "Resources": {"CPU": 50, "MemoryMB": 32},
            }
        ],
    }


@contextlib.contextmanager
def _docker(folder: Path) -> Iterator[Docker | None]:
    try:
        docker = find_or_start(folder)
    except DockerUnavailableError as reason:
        print(f"Using processes only: {reason}", flush=True)
        yield None
        return
    try:
        yield docker
    finally:
        docker.close()


def _stop_jobs(cluster: LocalCluster) -> None:
    """Stop what runs, so that nothing outlives the demo: agents leave their tasks alone when they stop."""
    server = next((d for d in cluster.running() if d.role == "server"), None)
    if server is None:
        return
    api = cluster.api(server)
    for job in api.get("/v1/jobs"):
        api.delete(f"/v1/job/{job['ID']}")

    def ended() -> bool:
        allocs = api.get("/v1/allocations")
        return all(a["ClientStatus"] in ("complete", "failed", "lost") for a in allocs)

    until(ended, seconds=30, what="the tasks to end")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="clean up and end after the tour")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="nomadpy-demo-"))
    failed = False
    try:
        with _docker(folder / "docker") as docker:
            endpoint = docker.endpoint if docker is not None else ""
            with LocalCluster(folder, docker_host=endpoint) as cluster:
                try:
                    tour = Tour(cluster, docker)
                    tour.run()
                    if not options.once:
                        tour.farewell()
                        signal.pause()
                except KeyboardInterrupt:
                    print("Stopping.", flush=True)
                finally:
                    with contextlib.suppress(ApiError, TimeoutError):
                        _stop_jobs(cluster)
    except (ApiError, RuntimeError, TimeoutError) as error:
        failed = True
        print(f"The demo failed: {error}\nThe logs are kept in {folder}", file=sys.stderr)
    # The supervisors of ended tasks would leave by themselves, but seconds later.
    end_processes_of(folder)
    if not failed:
        remove_folder(folder)
        if options.once:
            print("Everything is stopped and removed.", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
