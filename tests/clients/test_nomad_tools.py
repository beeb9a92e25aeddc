"""nomad-tools works against a development agent, with our command line in the place of the `nomad` that it calls.

Its `watch` polls here: the event stream is not part of this version.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from real_cluster import Json, RealCluster, group, job, shell

from nomadpy.demo.client import ApiClient, until

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home of its own, and our command line under the name `nomad`."""
    home = tmp_path_factory.mktemp("home")
    command = home / "bin" / "nomad"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m nomadpy "$@"\n')
    command.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NOMAD_")}
    return {**kept, "HOME": str(home), "PATH": f"{command.parent}:{os.environ['PATH']}"}


def tool_of(environment: dict[str, str], folder: Path) -> Tool:
    program = Path(sys.executable).with_name("nomadtools")

    def run(*arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(program), *arguments],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode != 0) == fails, (
            f"{done.args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    return run


@pytest.fixture
def tool(environment: dict[str, str], dev_agent: ApiClient, tmp_path: Path) -> Tool:
    """Runs `nomadtools ARGUMENTS` in a folder of the test's own."""
    return tool_of({**environment, "NOMAD_ADDR": f"http://{dev_agent.address}"}, tmp_path)


@pytest.fixture
def web(dev_agent: ApiClient) -> Json:
    """A running allocation of job web, with a port."""
    network = {"Mode": "host", "DynamicPorts": [{"Label": "http"}]}
    wanted = job("web", group(shell("echo up; exec sleep 600"), Networks=[network]))
    dev_agent.put("/v1/jobs", {"Job": wanted})

    def look() -> Json | None:
        rows = dev_agent.get("/v1/job/web/allocations")
        found = [a for a in rows if a["ClientStatus"] == "running"]
        return found[0] if found else None

    found: Json = until(look, seconds=30, what="web")
    return dev_agent.get(f"/v1/allocation/{found['ID']}")


def write(folder: Path, wanted: Json) -> str:
    name = f"{wanted['ID']}.json"
    (folder / name).write_text(json.dumps({"Job": wanted}))
    return name


def test_watch_run_shows_a_batch_jobs_output_and_passes_its_exit_code_on(
    tool: Tool, tmp_path: Path
) -> None:
    never = {
        "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
        "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
    }
    for code in (0, 7):
        script = f"echo to stdout; echo to stderr >&2; sleep 2.5; exit {code}"
        wanted = job(f"watched{code}", group(shell(script), **never), kind="batch")
        done = tool(
            "watch",
            "--polling",
            "-n",
            "-1",
            "--json",
            "run",
            write(tmp_path, wanted),
            fails=code != 0,
        )
        assert done.returncode == code
        assert "main> to stdout" in done.stdout
        assert "main> to stderr" in done.stdout
        assert f"Terminated Exit Code: {code}" in done.stdout


def test_watch_starts_stops_and_purges_a_service(
    tool: Tool, tmp_path: Path, dev_agent: ApiClient
) -> None:
    name = write(tmp_path, job("served", group(shell("echo up; exec sleep 600"))))
    done = tool("watch", "--polling", "-n", "-1", "--json", "start", name)
    assert "started allocation" in done.stderr
    assert "main> up" in done.stdout
    assert "started allocation" in tool("watch", "--polling", "started", "served").stderr
    done = tool("watch", "--polling", "-x", "--purge", "stop", "served")
    assert "Purging job served" in done.stderr
    assert dev_agent.send("GET", "/v1/job/served").status == 404


def test_go_makes_a_job_that_runs(tool: Tool, tmp_path: Path) -> None:
    made = tool(
        "go",
        "-O",
        "--driver",
        "raw_exec",
        "--name",
        "gone",
        "--cpu",
        "20",
        "--memorymb",
        "32",
        "sh",
        "-c",
        "echo hello from go; sleep 2.5",
    )
    (tmp_path / "gone.json").write_text(made.stdout)
    done = tool("watch", "--polling", "-n", "-1", "--json", "run", "gone.json")
    assert "gone> hello from go" in done.stdout


def test_commands_run_in_a_task_that_is_found_by_its_job(tool: Tool, web: Json) -> None:
    assert tool("task", "-j", "web", "ls").stdout.split() == [web["ID"], "main"]
    done = tool("task", "-j", "web", "-t", "main", "exec", "sh", "-c", "echo in $NOMAD_TASK_NAME")
    assert done.stdout == "in main\n"
    done = tool("task", "-j", "web", "exec", "sh", "-c", "exit 9", fails=True)
    assert done.returncode == 9


def test_files_are_copied_into_a_task_and_out_again(tool: Tool, web: Json, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "in.bin").write_bytes(data)
    tool("cp", "in.bin", "web::local/data.bin")
    tool("cp", "web::local/data.bin", "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == data
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "leaf").write_text("leaf")
    tool("cp", "tree", "web::local/")
    tool("cp", "web::local/tree", "back")
    assert (tmp_path / "back" / "deep" / "leaf").read_text() == "leaf"


def test_a_change_of_a_job_is_noticed(tool: Tool, tmp_path: Path, dev_agent: ApiClient) -> None:
    wanted = job("compared", group(shell("exec sleep 600")))
    dev_agent.put("/v1/jobs", {"Job": wanted})
    until(
        lambda: (
            [d["Status"] for d in dev_agent.get("/v1/job/compared/deployments")] == ["successful"]
        ),
        seconds=20,
        what="the deployment",
    )
    assert tool("changed", "--json", write(tmp_path, wanted)).stdout == ""
    wanted["TaskGroups"][0]["Count"] = 2
    assert '+/- Count: "1" => "2"' in tool("changed", "--json", write(tmp_path, wanted)).stdout
    dev_agent.delete("/v1/job/compared", purge="true")


def test_nodes_ports_attributes_and_the_topology_are_shown(tool: Tool, web: Json) -> None:
    port = web["AllocatedResources"]["Shared"]["Ports"][0]
    assert tool("port", "web").stdout == f"{port['HostIP']}:{port['Value']}\n"
    assert tool("nodenametoid", "dev").stdout.strip() == web["NodeID"]
    assert "dev" in tool("listattributes", "attr.kernel.name").stdout
    assert "node.unique.name" in tool("listnodeattributes", "dev").stdout
    assert tool("constrainteval", "${attr.kernel.name}", "=", "linux").stdout.split() == [
        "name",
        "attr.kernel.name",
        "dev",
        "linux",
    ]
    assert "web.group[0]" in tool("info", "topology").stdout


def test_it_works_with_a_client_certificate_too(
    environment: dict[str, str], tls_cluster: RealCluster, tmp_path: Path
) -> None:
    secured = {**environment, **tls_cluster.environment(tls_cluster.clients[0])}
    secure_tool = tool_of(secured, tmp_path)
    (alloc,) = tls_cluster.run(job("secured", group(shell("exec sleep 600"))))
    assert secure_tool("task", "-j", "secured", "ls").stdout.split() == [alloc["ID"], "main"]
    assert secure_tool("task", "-j", "secured", "exec", "echo", "safe").stdout == "safe\n"
    began = time.monotonic()
    secure_tool("watch", "--polling", "-x", "stop", "secured")
    assert time.monotonic() - began < 30
    assert tls_cluster.allocs("secured", status="running") == []


def test_a_variable_is_kept_as_a_directory(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "site.conf").write_text("listen 80;\n")
    place = ("vardir", "nomad/jobs/site")
    tool(*place, "put", "site.conf")
    tool(*place, "set", "colour", "blue")
    # A heading, then each key with its size.
    rows = tool(*place, "ls").stdout.splitlines()[1:]
    assert sorted(r.split() for r in rows) == [["colour", "4"], ["site.conf", "11"]]
    assert tool(*place, "cat", "site.conf").stdout.rstrip("\n") == "listen 80;"
    (tmp_path / "site.conf").unlink()
    tool(*place, "get", "site.conf")
    assert (tmp_path / "site.conf").read_text() == "listen 80;\n"
    tool(*place, "rm", "colour")
    assert tool(*place, "ls").stdout.split()[2:] == ["site.conf", "11"]
