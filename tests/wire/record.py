"""Drive a Nomad-compatible HTTP API through named scenarios and record every exchange.

    python record.py --address http://127.0.0.1:4646 --out DIR [--scenario NAME ...]

Each scenario is a function that calls `call(name, method, path, ...)`; each call becomes one JSON line
{"name", "request": {...}, "response": {"status", "headers", "body"}} in DIR/SCENARIO.jsonl.
compare.py holds two such folders against each other.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import requests

HEADERS_KEPT = (
    "Content-Type",
    "X-Nomad-Index",
    "X-Nomad-Knownleader",
    "X-Nomad-Lastcontact",
    "X-Nomad-Nexttoken",
)
SCENARIOS: dict[str, Callable[[Recorder], None]] = {}


def scenario(function: Callable[[Recorder], None]) -> Callable[[Recorder], None]:
    SCENARIOS[function.__name__] = function
    return function


class Recorder:
    """One scenario's calls against one server, kept in order."""

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address.rstrip("/")
        self.token = token
        self.exchanges: list[dict[str, Any]] = []

    def raw(
        self,
        method: str,
        path: str,
        *,
        query: dict | None = None,
        body: Any = None,
        data: bytes | None = None,
        token: str | None = None,
        timeout: float = 30,
    ) -> requests.Response:
        headers = {}
        if token or self.token:
            headers["X-Nomad-Token"] = token or self.token or ""
        return requests.request(
            method,
            self.address + path,
            params=query,
            headers=headers,
            timeout=timeout,
            data=data if data is not None else (json.dumps(body) if body is not None else None),
        )

    def call(
        self,
        name: str,
        method: str,
        path: str,
        *,
        query: dict | None = None,
        body: Any = None,
        data: bytes | None = None,
        token: str | None = None,
        timeout: float = 30,
    ) -> Any:
        try:
            response = self.raw(
                method, path, query=query, body=body, data=data, token=token, timeout=timeout
            )
        except requests.RequestException as error:
            self.exchanges.append(
                {
                    "name": name,
                    "request": {"method": method, "path": path},
                    "response": {"status": 0, "headers": {}, "body": f"{type(error).__name__}"},
                }
            )
            return None
        try:
            answer = response.json()
        except ValueError:
            answer = response.text
        self.exchanges.append(
            {
                "name": name,
                "request": {
                    "method": method,
                    "path": path,
                    "query": query,
                    "body": body if data is None else data.decode("utf-8", "replace"),
                },
                "response": {
                    "status": response.status_code,
                    "headers": {
                        h: response.headers[h] for h in HEADERS_KEPT if h in response.headers
                    },
                    "body": answer,
                },
            }
        )
        return answer

    def until(
        self,
        path: str,
        ready: Callable[[Any], bool],
        *,
        query: dict | None = None,
        seconds: float = 40,
    ) -> Any:
        """Poll (unrecorded) until `ready(answer)`; returns the last answer either way."""
        deadline = time.monotonic() + seconds
        answer = None
        while time.monotonic() < deadline:
            try:
                response = self.raw("GET", path, query=query)
                answer = response.json()
                if ready(answer):
                    return answer
            except (requests.RequestException, ValueError):
                pass
            time.sleep(0.25)
        return answer


def raw_exec_job(
    job_id: str, script: str = "sleep 600", *, kind: str = "service", count: int = 1, **over: Any
) -> dict[str, Any]:
    job = {
        "ID": job_id,
        "Name": job_id,
        "Type": kind,
        "Datacenters": ["dc1"],
        "TaskGroups": [
            {
                "Name": "group",
                "Count": count,
                "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
                "Tasks": [
                    {
                        "Name": "task",
                        "Driver": "raw_exec",
                        "Config": {"command": "/bin/sh", "args": ["-c", script]},
                        "Resources": {"CPU": 20, "MemoryMB": 10},
                    }
                ],
            }
        ],
    }
    if kind in ("system", "sysbatch"):
        job["TaskGroups"][0]["Count"] = 1
    if kind == "service":
        job["Update"] = {
            "MinHealthyTime": 500_000_000,
            "HealthCheck": "task_states",
            "HealthyDeadline": 20_000_000_000,
            "ProgressDeadline": 40_000_000_000,
        }
    job.update(over)
    return job


def running(allocs: Any) -> bool:
    return bool(allocs) and all(
        a["ClientStatus"] == "running" for a in allocs if a["DesiredStatus"] == "run"
    )


def finished(allocs: Any) -> bool:
    return bool(allocs) and all(a["ClientStatus"] in ("complete", "failed") for a in allocs)


def submit(r: Recorder, job: dict, wait: Callable[[Any], bool] = running) -> list[dict]:
    r.raw("PUT", "/v1/jobs", body={"Job": job})
    return r.until(f"/v1/job/{job['ID']}/allocations", wait) or []


def purge(r: Recorder, *job_ids: str) -> None:
    for job_id in job_ids:
        r.raw("DELETE", f"/v1/job/{job_id}", query={"purge": "true"})
    time.sleep(0.5)


def first_node(r: Recorder) -> str:
    return r.until("/v1/nodes", lambda n: bool(n))[0]["ID"]


@scenario
def agent(r: Recorder) -> None:
    for name, path in {
        "self": "/v1/agent/self",
        "members": "/v1/agent/members",
        "servers": "/v1/agent/servers",
        "health": "/v1/agent/health",
        "health-server": "/v1/agent/health?type=server",
        "leader": "/v1/status/leader",
        "peers": "/v1/status/peers",
        "regions": "/v1/regions",
        "raft": "/v1/operator/raft/configuration",
        "autopilot": "/v1/operator/autopilot/configuration",
        "autopilot-health": "/v1/operator/autopilot/health",
        "scheduler": "/v1/operator/scheduler/configuration",
        "keyring": "/v1/operator/keyring/keys",
        "metrics": "/v1/metrics",
        "jwks": "/.well-known/jwks.json",
        "license": "/v1/operator/license",
        "root": "/",
        "unknown": "/v1/nothing-here",
    }.items():
        r.call(name, "GET", path)
    r.call(
        "scheduler-set",
        "PUT",
        "/v1/operator/scheduler/configuration",
        body={"SchedulerAlgorithm": "spread", "PreemptionConfig": {"SystemSchedulerEnabled": True}},
    )
    r.call("scheduler-get-after-set", "GET", "/v1/operator/scheduler/configuration")
    r.call(
        "scheduler-set-bad",
        "PUT",
        "/v1/operator/scheduler/configuration",
        body={"SchedulerAlgorithm": "magic"},
    )
    r.call(
        "scheduler-reset",
        "PUT",
        "/v1/operator/scheduler/configuration",
        body={
            "SchedulerAlgorithm": "binpack",
            "PreemptionConfig": {"SystemSchedulerEnabled": True},
        },
    )
    r.call("system-gc", "PUT", "/v1/system/gc")
    r.call("reconcile-summaries", "PUT", "/v1/system/reconcile/summaries")
    r.call("method-not-allowed", "DELETE", "/v1/nodes")
    r.call("keyring-rotate", "PUT", "/v1/operator/keyring/rotate")
    r.call("snapshot-head", "GET", "/v1/operator/utilization")


@scenario
def nodes(r: Recorder) -> None:
    node = first_node(r)
    r.call("list", "GET", "/v1/nodes")
    r.call("list-resources", "GET", "/v1/nodes", query={"resources": "true", "os": "true"})
    r.call("list-prefix", "GET", "/v1/nodes", query={"prefix": node[:4]})
    r.call("list-prefix-odd", "GET", "/v1/nodes", query={"prefix": node[:5]})
    r.call("list-prefix-bad", "GET", "/v1/nodes", query={"prefix": "zz"})
    r.call(
        "list-filter",
        "GET",
        "/v1/nodes",
        query={"filter": 'Status == "ready" and Drivers.raw_exec.Healthy == true'},
    )
    r.call("list-filter-bad", "GET", "/v1/nodes", query={"filter": "Status = ready"})
    r.call("list-paged", "GET", "/v1/nodes", query={"per_page": "1"})
    r.call("read", "GET", f"/v1/node/{node}")
    r.call("read-missing", "GET", f"/v1/node/{uuid.UUID(int=7)}")
    r.call("read-bad-id", "GET", "/v1/node/not-a-uuid")
    r.call("allocations", "GET", f"/v1/node/{node}/allocations")
    r.call("stats", "GET", "/v1/client/stats", query={"node_id": node})
    r.call("client-metadata", "GET", "/v1/client/metadata", query={"node_id": node})
    r.call(
        "client-metadata-set",
        "POST",
        "/v1/client/metadata",
        query={"node_id": node},
        body={"NodeID": node, "Meta": {"colour": "green", "rack": None}},
    )
    r.call("client-gc", "PUT", "/v1/client/gc", query={"node_id": node})
    r.call(
        "ineligible",
        "PUT",
        f"/v1/node/{node}/eligibility",
        body={"NodeID": node, "Eligibility": "ineligible"},
    )
    r.call(
        "eligible",
        "PUT",
        f"/v1/node/{node}/eligibility",
        body={"NodeID": node, "Eligibility": "eligible"},
    )
    r.call(
        "eligibility-bad",
        "PUT",
        f"/v1/node/{node}/eligibility",
        body={"NodeID": node, "Eligibility": "maybe"},
    )
    r.call(
        "drain",
        "PUT",
        f"/v1/node/{node}/drain",
        body={
            "NodeID": node,
            "DrainSpec": {"Deadline": 60_000_000_000, "IgnoreSystemJobs": True},
            "Meta": {"reason": "kernel"},
        },
    )
    r.until(f"/v1/node/{node}", lambda n: n.get("DrainStrategy") is None)
    r.call("drained", "GET", f"/v1/node/{node}")
    r.call(
        "undrain",
        "PUT",
        f"/v1/node/{node}/drain",
        body={"NodeID": node, "DrainSpec": None, "MarkEligible": True},
    )
    r.call("evaluate", "PUT", f"/v1/node/{node}/evaluate")
    r.call("pools", "GET", "/v1/node/pools")
    r.call(
        "pool-create",
        "PUT",
        "/v1/node/pools",
        body={"Name": "gpu", "Description": "gpu machines", "Meta": {"team": "ml"}},
    )
    r.call("pool-read", "GET", "/v1/node/pool/gpu")
    r.call("pool-nodes", "GET", "/v1/node/pool/default/nodes")
    r.call("pool-jobs", "GET", "/v1/node/pool/default/jobs")
    r.call("pool-bad-name", "PUT", "/v1/node/pools", body={"Name": "bad name!"})
    r.call("pool-delete", "DELETE", "/v1/node/pool/gpu")
    r.call("pool-delete-builtin", "DELETE", "/v1/node/pool/default")


@scenario
def jobs(r: Recorder) -> None:
    job = raw_exec_job("web", count=2, Meta={"team": "core"})
    r.call("list-empty", "GET", "/v1/jobs", query={"prefix": "web"})
    r.call("validate", "PUT", "/v1/validate/job", body={"Job": job})
    r.call(
        "validate-bad",
        "PUT",
        "/v1/validate/job",
        body={"Job": {"ID": "x", "Name": "x", "Type": "service"}},
    )
    r.call("plan-new", "PUT", "/v1/job/web/plan", body={"Job": job, "Diff": True})
    registered = r.call("register", "PUT", "/v1/jobs", body={"Job": job})
    r.until("/v1/job/web/allocations", running)
    r.until("/v1/job/web/deployment", lambda d: d and d["Status"] == "successful")
    r.until(
        "/v1/job/web/evaluations",
        lambda e: len(e) > 1 and all(x["Status"] == "complete" for x in e),
        seconds=5,
    )
    time.sleep(3)
    r.call("read", "GET", "/v1/job/web")
    r.call("read-missing", "GET", "/v1/job/no-such-job")
    r.call("list", "GET", "/v1/jobs")
    r.call("list-meta", "GET", "/v1/jobs", query={"meta": "true", "prefix": "we"})
    r.call(
        "list-filter",
        "GET",
        "/v1/jobs",
        query={"filter": 'Type == "service" and Name matches "w.b"'},
    )
    r.call("statuses", "GET", "/v1/jobs/statuses")
    r.call("summary", "GET", "/v1/job/web/summary")
    r.call("allocations", "GET", "/v1/job/web/allocations")
    r.call("evaluations", "GET", "/v1/job/web/evaluations")
    r.call("deployments", "GET", "/v1/job/web/deployments")
    r.call("deployment", "GET", "/v1/job/web/deployment")
    r.call("versions", "GET", "/v1/job/web/versions", query={"diffs": "true"})
    r.call("submission", "GET", "/v1/job/web/submission", query={"version": "0"})
    r.call("scale-status", "GET", "/v1/job/web/scale")
    r.call("services", "GET", "/v1/job/web/services")
    r.call("actions", "GET", "/v1/job/web/actions")
    evaluation = (registered or {}).get("EvalID", "")
    r.call("eval-read", "GET", f"/v1/evaluation/{evaluation}")
    r.call("eval-read-related", "GET", f"/v1/evaluation/{evaluation}", query={"related": "true"})
    r.call("eval-allocations", "GET", f"/v1/evaluation/{evaluation}/allocations")
    r.call("evals", "GET", "/v1/evaluations", query={"job": "web"})
    r.call("evals-count", "GET", "/v1/evaluations/count", query={"filter": 'JobID == "web"'})
    grown = raw_exec_job("web", count=3, Meta={"team": "core"})
    grown["TaskGroups"][0]["Tasks"][0]["Env"] = {"GREETING": "hello"}
    r.call("plan-change", "PUT", "/v1/job/web/plan", body={"Job": grown, "Diff": True})
    r.call(
        "register-check-index-stale",
        "PUT",
        "/v1/jobs",
        body={"Job": grown, "EnforceIndex": True, "JobModifyIndex": 1},
    )
    r.call("register-again", "PUT", "/v1/jobs", body={"Job": grown})
    r.until(
        "/v1/job/web/deployment",
        lambda d: d and d["JobVersion"] == 1 and d["Status"] == "successful",
        seconds=60,
    )
    r.call("versions-after", "GET", "/v1/job/web/versions", query={"diffs": "true"})
    r.call("allocations-after", "GET", "/v1/job/web/allocations", query={"all": "true"})
    r.call(
        "scale",
        "PUT",
        "/v1/job/web/scale",
        body={"Target": {"Group": "group"}, "Count": 4, "Message": "more", "Meta": {"by": "hand"}},
    )
    r.until(
        "/v1/job/web/deployment",
        lambda d: d and d["Status"] == "successful" and d["JobVersion"] == 2,
        seconds=60,
    )
    r.call("scale-status-after", "GET", "/v1/job/web/scale")
    r.call(
        "scale-bad-group",
        "PUT",
        "/v1/job/web/scale",
        body={"Target": {"Group": "nope"}, "Count": 2},
    )
    r.call(
        "scale-negative",
        "PUT",
        "/v1/job/web/scale",
        body={"Target": {"Group": "group"}, "Count": -2},
    )
    r.call("revert", "PUT", "/v1/job/web/revert", body={"JobID": "web", "JobVersion": 0})
    r.call("revert-missing", "PUT", "/v1/job/web/revert", body={"JobID": "web", "JobVersion": 77})
    r.call(
        "stable",
        "PUT",
        "/v1/job/web/stable",
        body={"JobID": "web", "JobVersion": 0, "Stable": True},
    )
    r.call(
        "tag", "PUT", "/v1/job/web/versions/golden/tag", body={"Version": 0, "Description": "good"}
    )
    r.call(
        "evaluate",
        "PUT",
        "/v1/job/web/evaluate",
        body={"JobID": "web", "EvalOptions": {"ForceReschedule": True}},
    )
    r.call("stop", "DELETE", "/v1/job/web")
    r.until("/v1/job/web/allocations", lambda a: all(x["ClientStatus"] == "complete" for x in a))
    r.call("read-stopped", "GET", "/v1/job/web")
    r.call("list-stopped", "GET", "/v1/jobs", query={"prefix": "web"})
    r.call("purge", "DELETE", "/v1/job/web", query={"purge": "true"})
    r.call("read-purged", "GET", "/v1/job/web")


@scenario
def job_errors(r: Recorder) -> None:
    def bad(name: str, change: Callable[[dict], None]) -> None:
        job = raw_exec_job("bad")
        change(job)
        r.call(name, "PUT", "/v1/jobs", body={"Job": job})

    r.call("empty-body", "PUT", "/v1/jobs", data=b"")
    r.call("not-json", "PUT", "/v1/jobs", data=b"{nope")
    r.call("no-job", "PUT", "/v1/jobs", body={})
    r.call("job-null", "PUT", "/v1/jobs", body={"Job": None})
    r.call("wrong-id-in-path", "PUT", "/v1/job/other", body={"Job": raw_exec_job("bad")})
    bad("no-id", lambda j: j.pop("ID"))
    bad("id-with-space", lambda j: j.update(ID="a b"))
    bad("no-groups", lambda j: j.update(TaskGroups=[]))
    bad("no-tasks", lambda j: j["TaskGroups"][0].update(Tasks=[]))
    bad("no-driver", lambda j: j["TaskGroups"][0]["Tasks"][0].pop("Driver"))
    bad("two-groups-same-name", lambda j: j["TaskGroups"].append(j["TaskGroups"][0]))
    bad("negative-count", lambda j: j["TaskGroups"][0].update(Count=-1))
    bad("priority-too-high", lambda j: j.update(Priority=1000))
    bad("unknown-type", lambda j: j.update(Type="daemon"))
    bad("unknown-namespace", lambda j: j.update(Namespace="nowhere"))
    bad("unknown-pool", lambda j: j.update(NodePool="nowhere"))
    bad(
        "bad-constraint",
        lambda j: j.update(
            Constraints=[{"LTarget": "${attr.kernel.name}", "RTarget": "linux", "Operand": "~="}]
        ),
    )
    bad(
        "bad-regexp",
        lambda j: j.update(
            Constraints=[{"LTarget": "${attr.kernel.name}", "RTarget": "([", "Operand": "regexp"}]
        ),
    )
    bad(
        "bad-cron",
        lambda j: j.update(
            Type="batch",
            Update=None,
            Periodic={"Enabled": True, "Spec": "nope", "SpecType": "cron"},
        ),
    )
    bad(
        "memory-too-small",
        lambda j: j["TaskGroups"][0]["Tasks"][0].update(Resources={"CPU": 1, "MemoryMB": 1}),
    )
    bad(
        "system-count-2",
        lambda j: (j.update(Type="system", Update=None), j["TaskGroups"][0].update(Count=2)),
    )
    bad("canary-over-count", lambda j: j["Update"].update(Canary=-1))
    bad("wrong-type-field", lambda j: j.update(Priority="high"))


@scenario
def batch(r: Recorder) -> None:
    allocs = submit(
        r, raw_exec_job("once", "echo out; echo err >&2; exit 0", kind="batch"), finished
    )
    r.call("allocations", "GET", "/v1/job/once/allocations")
    alloc = allocs[0]["ID"]
    r.call("alloc-read", "GET", f"/v1/allocation/{alloc}")
    r.call(
        "logs-stdout",
        "GET",
        f"/v1/client/fs/logs/{alloc}",
        query={"task": "task", "type": "stdout", "plain": "true"},
    )
    r.call(
        "logs-framed",
        "GET",
        f"/v1/client/fs/logs/{alloc}",
        query={"task": "task", "type": "stderr"},
    )
    r.call(
        "logs-bad-type",
        "GET",
        f"/v1/client/fs/logs/{alloc}",
        query={"task": "task", "type": "both"},
    )
    r.call("logs-no-task", "GET", f"/v1/client/fs/logs/{alloc}", query={"type": "stdout"})
    r.call(
        "logs-unknown-task",
        "GET",
        f"/v1/client/fs/logs/{alloc}",
        query={"task": "nope", "type": "stdout"},
    )
    r.call("job", "GET", "/v1/job/once")
    submit(
        r,
        raw_exec_job(
            "fails",
            "exit 3",
            kind="batch",
        ),
        finished,
    )
    r.call("failed-allocations", "GET", "/v1/job/fails/allocations")
    r.call("failed-evaluations", "GET", "/v1/job/fails/evaluations")
    huge = raw_exec_job("huge", kind="batch")
    huge["TaskGroups"][0]["Tasks"][0]["Resources"] = {"CPU": 900_000, "MemoryMB": 10}
    r.raw("PUT", "/v1/jobs", body={"Job": huge})
    r.until("/v1/job/huge/evaluations", lambda e: any(x["Status"] == "blocked" for x in e))
    r.call("blocked-evaluations", "GET", "/v1/job/huge/evaluations")
    r.call("blocked-summary", "GET", "/v1/job/huge/summary")
    r.call("blocked-plan", "PUT", "/v1/job/huge/plan", body={"Job": huge, "Diff": False})
    nodriver = raw_exec_job("nodriver", kind="batch")
    nodriver["TaskGroups"][0]["Constraints"] = [
        {"LTarget": "${attr.kernel.name}", "RTarget": "plan9", "Operand": "="}
    ]
    r.raw("PUT", "/v1/jobs", body={"Job": nodriver})
    r.until("/v1/job/nodriver/evaluations", lambda e: any(x["Status"] == "blocked" for x in e))
    r.call("filtered-evaluations", "GET", "/v1/job/nodriver/evaluations")
    submit(r, raw_exec_job("everywhere", "sleep 600", kind="system"))
    r.call("system-allocations", "GET", "/v1/job/everywhere/allocations")
    submit(r, raw_exec_job("sweep", "exit 0", kind="sysbatch"), finished)
    r.call("sysbatch-allocations", "GET", "/v1/job/sweep/allocations")
    r.call("sysbatch-job", "GET", "/v1/job/sweep")
    purge(r, "once", "fails", "huge", "nodriver", "everywhere", "sweep")


@scenario
def allocations(r: Recorder) -> None:
    allocs = submit(
        r,
        raw_exec_job(
            "shell",
            "echo hello; mkdir -p $NOMAD_TASK_DIR/d; echo data > $NOMAD_TASK_DIR/f; "
            "trap 'echo usr1' USR1; while true; do sleep 0.2; done",
        ),
    )
    alloc = allocs[0]["ID"]
    node = allocs[0]["NodeID"]
    time.sleep(1.5)
    r.call("list", "GET", "/v1/allocations")
    r.call(
        "list-resources",
        "GET",
        "/v1/allocations",
        query={"resources": "true", "task_states": "false"},
    )
    r.call("list-prefix", "GET", "/v1/allocations", query={"prefix": alloc[:8]})
    r.call("list-filter", "GET", "/v1/allocations", query={"filter": 'JobID == "shell"'})
    r.call("read", "GET", f"/v1/allocation/{alloc}")
    r.call("read-missing", "GET", f"/v1/allocation/{uuid.UUID(int=9)}")
    r.call("services", "GET", f"/v1/allocation/{alloc}/services")
    r.call("checks", "GET", f"/v1/client/allocation/{alloc}/checks")
    r.call("stats", "GET", f"/v1/client/allocation/{alloc}/stats")
    r.call("fs-ls", "GET", f"/v1/client/fs/ls/{alloc}", query={"path": "/"})
    r.call("fs-ls-task", "GET", f"/v1/client/fs/ls/{alloc}", query={"path": "/task/local"})
    r.call("fs-ls-missing", "GET", f"/v1/client/fs/ls/{alloc}", query={"path": "/nope"})
    r.call("fs-ls-escape", "GET", f"/v1/client/fs/ls/{alloc}", query={"path": "/../../../etc"})
    r.call("fs-stat", "GET", f"/v1/client/fs/stat/{alloc}", query={"path": "/task/local/f"})
    r.call("fs-cat", "GET", f"/v1/client/fs/cat/{alloc}", query={"path": "/task/local/f"})
    r.call(
        "fs-readat",
        "GET",
        f"/v1/client/fs/readat/{alloc}",
        query={"path": "/task/local/f", "offset": 1, "limit": 2},
    )
    r.call(
        "fs-stream",
        "GET",
        f"/v1/client/fs/stream/{alloc}",
        query={"path": "/task/local/f", "offset": 0, "origin": "start", "follow": "false"},
    )
    r.call("fs-secrets", "GET", f"/v1/client/fs/ls/{alloc}", query={"path": "/task/secrets"})
    r.call(
        "signal",
        "PUT",
        f"/v1/client/allocation/{alloc}/signal",
        body={"Signal": "SIGUSR1", "Task": "task"},
    )
    r.call("restart", "PUT", f"/v1/client/allocation/{alloc}/restart", body={"TaskName": "task"})
    r.call(
        "restart-unknown-task",
        "PUT",
        f"/v1/client/allocation/{alloc}/restart",
        body={"TaskName": "nope"},
    )
    time.sleep(2)
    r.call("read-after-restart", "GET", f"/v1/allocation/{alloc}")
    r.call("node-allocations", "GET", f"/v1/node/{node}/allocations")
    r.call("stop", "PUT", f"/v1/allocation/{alloc}/stop")
    r.until(
        "/v1/job/shell/allocations",
        lambda a: len(a) == 2 and sorted(x["ClientStatus"] for x in a) == ["complete", "running"],
    )
    r.call("after-stop", "GET", "/v1/job/shell/allocations")
    purge(r, "shell")


@scenario
def dispatch(r: Recorder) -> None:
    job = raw_exec_job(
        "etl",
        "cat $NOMAD_TASK_DIR/input; exit 0",
        kind="batch",
        ParameterizedJob={
            "Payload": "optional",
            "MetaRequired": ["day"],
            "MetaOptional": ["force"],
        },
    )
    job["TaskGroups"][0]["Tasks"][0]["DispatchPayload"] = {"File": "input"}
    r.call("register", "PUT", "/v1/jobs", body={"Job": job})
    r.call("read", "GET", "/v1/job/etl")
    child = r.call(
        "dispatch",
        "PUT",
        "/v1/job/etl/dispatch",
        body={"Payload": "aGVsbG8=", "Meta": {"day": "monday"}},
    )
    r.call("dispatch-missing-meta", "PUT", "/v1/job/etl/dispatch", body={"Payload": "aGVsbG8="})
    r.call(
        "dispatch-unknown-meta",
        "PUT",
        "/v1/job/etl/dispatch",
        body={"Meta": {"day": "monday", "colour": "red"}},
    )
    r.call("dispatch-not-parameterized", "PUT", "/v1/job/no-such/dispatch", body={})
    child_id = (child or {}).get("DispatchedJobID", "none")
    r.until(f"/v1/job/{requests.utils.quote(child_id, safe='')}/allocations", finished)
    r.call("child", "GET", f"/v1/job/{requests.utils.quote(child_id, safe='')}")
    r.call("children", "GET", "/v1/jobs", query={"prefix": "etl/"})
    r.call("summary", "GET", "/v1/job/etl/summary")
    cron = raw_exec_job(
        "nightly",
        "exit 0",
        kind="batch",
        Periodic={
            "Enabled": True,
            "Spec": "0 3 * * *",
            "SpecType": "cron",
            "ProhibitOverlap": True,
            "TimeZone": "Europe/Berlin",
        },
    )
    r.call("periodic-register", "PUT", "/v1/jobs", body={"Job": cron})
    r.call("periodic-read", "GET", "/v1/job/nightly")
    r.call("periodic-force", "PUT", "/v1/job/nightly/periodic/force")
    r.until(
        "/v1/jobs",
        lambda j: any(x["ID"].startswith("nightly/") for x in j),
        query={"prefix": "nightly/"},
    )
    r.call("periodic-children", "GET", "/v1/jobs", query={"prefix": "nightly/"})
    r.call("periodic-force-not-periodic", "PUT", "/v1/job/etl/periodic/force")
    for stub in (
        r.raw("GET", "/v1/jobs", query={"prefix": "nightly"}).json()
        + r.raw("GET", "/v1/jobs", query={"prefix": "etl"}).json()
    ):
        r.raw(
            "DELETE",
            f"/v1/job/{requests.utils.quote(stub['ID'], safe='')}",
            query={"purge": "true"},
        )


@scenario
def deployments(r: Recorder) -> None:
    job = raw_exec_job("canary", count=2)
    job["Update"] |= {"Canary": 1, "MaxParallel": 1, "AutoRevert": False}
    submit(r, job)
    r.until("/v1/job/canary/deployment", lambda d: d and d["Status"] == "successful", seconds=60)
    job["TaskGroups"][0]["Tasks"][0]["Env"] = {"V": "2"}
    r.raw("PUT", "/v1/jobs", body={"Job": job})
    deployment = r.until(
        "/v1/job/canary/deployment",
        lambda d: d and d["JobVersion"] == 1 and d["TaskGroups"]["group"]["HealthyAllocs"] == 1,
        seconds=60,
    )
    identity = deployment["ID"]
    r.call("list", "GET", "/v1/deployments")
    r.call("read", "GET", f"/v1/deployment/{identity}")
    r.call("allocations", "GET", f"/v1/deployment/allocations/{identity}")
    r.call(
        "pause",
        "PUT",
        f"/v1/deployment/pause/{identity}",
        body={"DeploymentID": identity, "Pause": True},
    )
    r.call("read-paused", "GET", f"/v1/deployment/{identity}")
    r.call(
        "resume",
        "PUT",
        f"/v1/deployment/pause/{identity}",
        body={"DeploymentID": identity, "Pause": False},
    )
    r.call(
        "promote",
        "PUT",
        f"/v1/deployment/promote/{identity}",
        body={"DeploymentID": identity, "All": True},
    )
    r.until(f"/v1/deployment/{identity}", lambda d: d["Status"] == "successful", seconds=60)
    r.call("read-successful", "GET", f"/v1/deployment/{identity}")
    r.call(
        "promote-again",
        "PUT",
        f"/v1/deployment/promote/{identity}",
        body={"DeploymentID": identity, "All": True},
    )
    r.call("summary", "GET", "/v1/job/canary/summary")
    job["TaskGroups"][0]["Tasks"][0]["Env"] = {"V": "3"}
    r.raw("PUT", "/v1/jobs", body={"Job": job})
    deployment = r.until(
        "/v1/job/canary/deployment", lambda d: d and d["JobVersion"] == 2, seconds=60
    )
    identity = deployment["ID"]
    r.call("fail", "PUT", f"/v1/deployment/fail/{identity}", body={"DeploymentID": identity})
    r.call("read-failed", "GET", f"/v1/deployment/{identity}")
    r.call("read-missing", "GET", f"/v1/deployment/{uuid.UUID(int=3)}")
    purge(r, "canary")


@scenario
def variables(r: Recorder) -> None:
    def var(path: str, items: dict, **over: Any) -> dict:
        return {"Namespace": "default", "Path": path, "Items": items, **over}

    r.call("list-empty", "GET", "/v1/vars")
    r.call(
        "create",
        "PUT",
        "/v1/var/app/config",
        body=var("app/config", {"user": "alice", "password": "secret"}),
    )
    first = r.call("read", "GET", "/v1/var/app/config")
    r.call(
        "create-cas-0-conflict",
        "PUT",
        "/v1/var/app/config",
        query={"cas": 0},
        body=var("app/config", {"user": "bob"}),
    )
    r.call(
        "cas-right",
        "PUT",
        "/v1/var/app/config",
        query={"cas": (first or {}).get("ModifyIndex", 0)},
        body=var("app/config", {"user": "carol"}),
    )
    r.call(
        "cas-stale",
        "PUT",
        "/v1/var/app/config",
        query={"cas": (first or {}).get("ModifyIndex", 0)},
        body=var("app/config", {"user": "dave"}),
    )
    r.call("list", "GET", "/v1/vars")
    r.call("list-prefix", "GET", "/v1/vars", query={"prefix": "app"})
    r.call("read-missing", "GET", "/v1/var/no/such")
    r.call("bad-path", "PUT", "/v1/var/bad path", body=var("bad path", {"a": "b"}))
    r.call("reserved-path", "PUT", "/v1/var/nomad/secret", body=var("nomad/secret", {"a": "b"}))
    r.call("empty-items", "PUT", "/v1/var/empty", body=var("empty", {}))
    r.call("mismatched-path", "PUT", "/v1/var/one", body=var("two", {"a": "b"}))
    r.call("too-large", "PUT", "/v1/var/large", body=var("large", {"a": "x" * 70000}))
    locked = r.call(
        "lock-acquire",
        "PUT",
        "/v1/var/locks/leader",
        query={"lock-acquire": ""},
        body=var("locks/leader", {"who": "a"}, Lock={"TTL": "15s", "LockDelay": "1s"}),
    )
    r.call(
        "lock-acquire-held",
        "PUT",
        "/v1/var/locks/leader",
        query={"lock-acquire": ""},
        body=var("locks/leader", {"who": "b"}, Lock={"TTL": "15s", "LockDelay": "1s"}),
    )
    lock_id = ((locked or {}).get("Lock") or {}).get("ID", "") if isinstance(locked, dict) else ""
    r.call("write-locked", "PUT", "/v1/var/locks/leader", body=var("locks/leader", {"who": "c"}))
    r.call(
        "lock-renew",
        "PUT",
        "/v1/var/locks/leader",
        query={"lock-renew": ""},
        body={"Namespace": "default", "Path": "locks/leader", "Lock": {"ID": lock_id}},
    )
    r.call(
        "lock-release-with-items",
        "PUT",
        "/v1/var/locks/leader",
        query={"lock-release": ""},
        body=var("locks/leader", {}, Lock={"ID": lock_id}),
    )
    r.call(
        "lock-release-wrong-id",
        "PUT",
        "/v1/var/locks/leader",
        query={"lock-release": ""},
        body={
            "Namespace": "default",
            "Path": "locks/leader",
            "Lock": {"ID": str(uuid.UUID(int=1))},
        },
    )
    r.call(
        "lock-release",
        "PUT",
        "/v1/var/locks/leader",
        query={"lock-release": ""},
        body={"Namespace": "default", "Path": "locks/leader", "Lock": {"ID": lock_id}},
    )
    r.call("read-unlocked", "GET", "/v1/var/locks/leader")
    r.call("delete-cas-stale", "DELETE", "/v1/var/app/config", query={"cas": 1})
    r.call("delete", "DELETE", "/v1/var/app/config")
    r.call("delete-missing", "DELETE", "/v1/var/app/config")
    r.raw("DELETE", "/v1/var/locks/leader")
    r.raw("DELETE", "/v1/var/one")
    r.raw("DELETE", "/v1/var/two")


@scenario
def namespaces(r: Recorder) -> None:
    r.call("list", "GET", "/v1/namespaces")
    r.call(
        "create",
        "PUT",
        "/v1/namespace/team-a",
        body={
            "Name": "team-a",
            "Description": "team a",
            "Meta": {"owner": "alice"},
            "Capabilities": {"DisabledTaskDrivers": ["raw_exec"]},
        },
    )
    r.call("read", "GET", "/v1/namespace/team-a")
    r.call("bad-name", "PUT", "/v1/namespace/bad name", body={"Name": "bad name"})
    r.call("read-missing", "GET", "/v1/namespace/none")
    r.call(
        "driver-disabled",
        "PUT",
        "/v1/jobs",
        query={"namespace": "team-a"},
        body={"Job": raw_exec_job("nsjob", Namespace="team-a")},
    )
    r.call("list-wildcard", "GET", "/v1/jobs", query={"namespace": "*"})
    r.call("list-unknown", "GET", "/v1/jobs", query={"namespace": "none"})
    r.call(
        "update", "PUT", "/v1/namespace/team-a", body={"Name": "team-a", "Description": "changed"}
    )
    job = raw_exec_job("nsjob", Namespace="team-a")
    r.raw("PUT", "/v1/jobs", query={"namespace": "team-a"}, body={"Job": job})
    r.until("/v1/job/nsjob/allocations", running, query={"namespace": "team-a"})
    r.call("delete-in-use", "DELETE", "/v1/namespace/team-a")
    r.call("job-other-namespace", "GET", "/v1/job/nsjob")
    r.raw("DELETE", "/v1/job/nsjob", query={"namespace": "team-a", "purge": "true"})
    time.sleep(3)
    r.raw("PUT", "/v1/system/gc")
    r.call("delete", "DELETE", "/v1/namespace/team-a")
    r.call("delete-default", "DELETE", "/v1/namespace/default")


@scenario
def services_and_search(r: Recorder) -> None:
    job = raw_exec_job("svc", "exec /usr/bin/python3 -m http.server $NOMAD_PORT_http")
    group = job["TaskGroups"][0]
    group["Tasks"][0]["Resources"]["MemoryMB"] = 100
    group["Networks"] = [{"Mode": "host", "DynamicPorts": [{"Label": "http"}]}]
    group["Services"] = [
        {
            "Name": "web-svc",
            "PortLabel": "http",
            "Provider": "nomad",
            "Tags": ["v1", "blue"],
            "Meta": {"a": "b"},
            "Checks": [
                {
                    "Name": "alive",
                    "Type": "http",
                    "Path": "/",
                    "Interval": 1_000_000_000,
                    "Timeout": 1_000_000_000,
                }
            ],
        }
    ]
    job["Update"]["HealthCheck"] = "checks"
    allocs = submit(r, job)
    r.until("/v1/job/svc/deployment", lambda d: d and d["Status"] == "successful")
    r.call("job", "GET", "/v1/job/svc")
    r.call("services", "GET", "/v1/services")
    r.call("service", "GET", "/v1/service/web-svc")
    r.call("service-choose", "GET", "/v1/service/web-svc", query={"choose": "1|abc"})
    r.call("service-missing", "GET", "/v1/service/none")
    r.call("checks", "GET", f"/v1/client/allocation/{allocs[0]['ID']}/checks")
    r.call("alloc", "GET", f"/v1/allocation/{allocs[0]['ID']}")
    r.call("search", "PUT", "/v1/search", body={"Prefix": "sv", "Context": "jobs"})
    r.call(
        "search-all", "PUT", "/v1/search", body={"Prefix": allocs[0]["ID"][:4], "Context": "all"}
    )
    r.call("search-bad", "PUT", "/v1/search", body={"Prefix": "sv", "Context": "nonsense"})
    r.call("fuzzy", "PUT", "/v1/search/fuzzy", body={"Text": "svc", "Context": "all"})
    r.call("scaling-policies", "GET", "/v1/scaling/policies")
    purge(r, "svc")
    policy = raw_exec_job("scaled")
    policy["TaskGroups"][0]["Scaling"] = {
        "Enabled": True,
        "Min": 1,
        "Max": 5,
        "Policy": {"cooldown": "20s"},
    }
    submit(r, policy)
    listed = r.call("scaling-policies-one", "GET", "/v1/scaling/policies", query={"job": "scaled"})
    if listed:
        r.call("scaling-policy", "GET", f"/v1/scaling/policy/{listed[0]['ID']}")
    r.call("job-scaled", "GET", "/v1/job/scaled")
    r.call(
        "scale-over-max",
        "PUT",
        "/v1/job/scaled/scale",
        body={"Target": {"Group": "group"}, "Count": 9},
    )
    purge(r, "scaled")


@scenario
def parse(r: Recorder) -> None:
    """Job specifications in HCL to the JSON job they stand for."""
    for path in sorted((pathlib.Path(__file__).parent / "jobspecs").glob("*.hcl")):
        text = path.read_text(encoding="utf-8")
        variables = path.with_suffix(".vars")
        body: dict[str, Any] = {"JobHCL": text, "Canonicalize": False}
        if variables.exists():
            body["Variables"] = variables.read_text(encoding="utf-8")
        r.call(path.stem, "PUT", "/v1/jobs/parse", body=body)
        r.call(
            path.stem + "+canonical", "PUT", "/v1/jobs/parse", body={**body, "Canonicalize": True}
        )


@scenario
def events(r: Recorder) -> None:
    job = raw_exec_job("evented", "exit 0", kind="batch")
    collected: list[Any] = []
    stream = requests.get(
        r.address + "/v1/event/stream", params={"topic": "*", "index": 0}, stream=True, timeout=20
    )
    submit(r, job, finished)
    deadline = time.monotonic() + 8
    try:
        for line in stream.iter_lines():
            if line and line != b"{}":
                collected.append(json.loads(line))
            if time.monotonic() > deadline:
                break
    except requests.RequestException:
        pass
    kinds: dict[str, Any] = {}
    for frame in collected:
        for event in frame.get("Events") or []:
            if "evented" not in (event["Key"], *(event.get("FilterKeys") or [])):
                continue  # what other scenarios did before
            kinds.setdefault(f"{event['Topic']}/{event['Type']}", event)
    for kind, event in sorted(kinds.items()):
        r.exchanges.append(
            {
                "name": kind,
                "request": {"method": "GET", "path": "/v1/event/stream", "query": {"topic": "*"}},
                "response": {
                    "status": stream.status_code,
                    "headers": {"Content-Type": stream.headers.get("Content-Type")},
                    "body": event,
                },
            }
        )
    purge(r, "evented")


@scenario
def blocking(r: Recorder) -> None:
    submit(r, raw_exec_job("blocked-on"))
    r.until("/v1/job/blocked-on/deployment", lambda d: d and d["Status"] == "successful")
    head = r.raw("GET", "/v1/job/blocked-on")
    index = int(head.headers["X-Nomad-Index"])
    started = time.monotonic()
    r.call("wait-expires", "GET", "/v1/job/blocked-on", query={"index": index, "wait": "1s"})
    r.exchanges[-1]["response"]["waited_about_a_second"] = 0.9 < time.monotonic() - started < 3
    r.call(
        "old-index-answers-at-once",
        "GET",
        "/v1/job/blocked-on",
        query={"index": index - 1, "wait": "10s"},
    )
    r.call("bad-index", "GET", "/v1/job/blocked-on", query={"index": "x"})
    r.call("bad-wait", "GET", "/v1/job/blocked-on", query={"index": index, "wait": "x"})
    r.call("stale", "GET", "/v1/job/blocked-on", query={"stale": ""})
    r.call("consistent", "GET", "/v1/job/blocked-on", query={"consistent": ""})
    r.call("pretty", "GET", "/v1/status/leader", query={"pretty": ""})
    r.call("wrong-region", "GET", "/v1/jobs", query={"region": "mars"})
    purge(r, "blocked-on")


@scenario
def access_control(r: Recorder) -> None:
    """Needs a fresh server with ACLs enabled and not yet bootstrapped."""
    r.call("before-bootstrap", "GET", "/v1/jobs")
    token = r.call("bootstrap", "PUT", "/v1/acl/bootstrap")
    r.call("bootstrap-again", "PUT", "/v1/acl/bootstrap")
    secret = (token or {}).get("SecretID", "") if isinstance(token, dict) else ""
    r.call("anonymous-jobs", "GET", "/v1/jobs")
    r.call("unknown-token", "GET", "/v1/jobs", token=str(uuid.UUID(int=5)))
    r.token = secret
    r.call("self", "GET", "/v1/acl/token/self")
    r.call(
        "policy-create",
        "PUT",
        "/v1/acl/policy/readonly",
        body={
            "Name": "readonly",
            "Description": "read jobs",
            "Rules": 'namespace "default" { policy = "read" }\nnode { policy = "read" }',
        },
    )
    r.call(
        "policy-bad",
        "PUT",
        "/v1/acl/policy/bad",
        body={"Name": "bad", "Rules": 'namespace "x" { policy = "all" }'},
    )
    r.call("policies", "GET", "/v1/acl/policies")
    r.call("policy", "GET", "/v1/acl/policy/readonly")
    created = r.call(
        "token-create",
        "PUT",
        "/v1/acl/token",
        body={
            "Name": "reader",
            "Type": "client",
            "Policies": ["readonly"],
            "ExpirationTTL": 600_000_000_000,
        },
    )
    r.call(
        "token-bad-policyless",
        "PUT",
        "/v1/acl/token",
        body={"Name": "x", "Type": "client", "Policies": []},
    )
    r.call("tokens", "GET", "/v1/acl/tokens")
    reader = (created or {}).get("SecretID", "") if isinstance(created, dict) else ""
    accessor = (created or {}).get("AccessorID", "") if isinstance(created, dict) else ""
    r.call("token", "GET", f"/v1/acl/token/{accessor}")
    r.call("reader-reads", "GET", "/v1/jobs", token=reader)
    r.call("reader-writes", "PUT", "/v1/jobs", token=reader, body={"Job": raw_exec_job("denied")})
    r.call("reader-acl", "GET", "/v1/acl/tokens", token=reader)
    r.call("reader-operator", "GET", "/v1/operator/raft/configuration", token=reader)
    r.call("reader-vars", "GET", "/v1/vars", token=reader)
    r.call(
        "role-create",
        "PUT",
        "/v1/acl/role",
        body={"Name": "readers", "Description": "all readers", "Policies": [{"Name": "readonly"}]},
    )
    r.call("roles", "GET", "/v1/acl/roles")
    r.call("role-by-name", "GET", "/v1/acl/role/name/readers")
    r.call("one-time-token", "PUT", "/v1/acl/token/onetime", token=reader)
    r.call("auth-methods", "GET", "/v1/acl/auth-methods")
    r.call("binding-rules", "GET", "/v1/acl/binding-rules")
    r.call("token-delete", "DELETE", f"/v1/acl/token/{accessor}")
    r.call("deleted-token", "GET", "/v1/jobs", token=reader)
    r.call("policy-delete", "DELETE", "/v1/acl/policy/readonly")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="http://127.0.0.1:4646")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--scenario", action="append", choices=sorted(SCENARIOS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.scenario or [n for n in SCENARIOS if n != "access_control"]:
        recorder = Recorder(options.address)
        try:
            SCENARIOS[name](recorder)
            outcome = "ok"
        except Exception as error:  # one scenario's failure must not hide the others
            outcome = f"stopped: {type(error).__name__}: {error}"
        with open(options.out / f"{name}.jsonl", "w", encoding="utf-8") as out:
            for exchange in recorder.exchanges:
                out.write(json.dumps(exchange, sort_keys=True) + "\n")
        print(f"{name}: {len(recorder.exchanges)} exchanges, {outcome}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
