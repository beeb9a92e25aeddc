"""Commands about allocations, nodes, deployments, evaluations, servers."""

from __future__ import annotations

import asyncio
import base64
import json
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from faking import answering, recorded, run

from nomadpy.cli.alloc_files import frames
from nomadpy.cli.errors import CliError

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "api"))

ALLOC = recorded("allocations", "read")
NODE = recorded("nodes", "read")
AID, NID = ALLOC["ID"], NODE["ID"]


def routes() -> dict[str, Any]:
    return {
        "GET /v1/allocations": recorded("allocations", "list"),
        f"GET /v1/allocation/{AID}": ALLOC,
        f"GET /v1/client/allocation/{AID}/stats": recorded("allocations", "stats"),
        "GET /v1/nodes": recorded("nodes", "list"),
        f"GET /v1/node/{NID}": NODE,
        f"GET /v1/node/{NID}/allocations": recorded("allocations", "node-allocations"),
        "GET /v1/client/stats": recorded("nodes", "stats"),
    }


def test_alloc_status_shows_tasks_and_events(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(routes(), monkeypatch) as agent:
        status, out, _ = run(capsys, "alloc", "status", "-stats", AID[:5])
        assert status == 0
        # The list route wants whole bytes, so the odd digit stays here.
        assert agent.of("GET /v1/allocations")[0][0]["prefix"] == AID[:4]
        for words in ('Task "task" is "running"', "Recent Events:", "Started", "Client Status"):
            assert words in out
        assert json.loads(run(capsys, "alloc", "status", "-json", AID)[1])["ID"] == AID
        assert "Placement Metrics" in run(capsys, "alloc-status", "-verbose", AID)[1]


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("a", "at least two characters"),
        ("zz", "ids are made of the digits"),
        ("ffff", 'No allocation(s) with prefix or ID "ffff" found'),
    ],
)
def test_an_id_that_names_nothing_is_explained(
    prefix: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answering(routes(), monkeypatch):
        status, _, err = run(capsys, "alloc", "status", prefix)
    assert (status, words in err) == (1, True)


def test_an_ambiguous_id_lists_what_it_may_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = recorded("allocations", "list")[0]
    rows = [{**stub, "ID": "abcd" + str(i) * 32} for i in range(2)]
    with answering({"GET /v1/allocations": rows}, monkeypatch):
        status, _, err = run(capsys, "alloc", "status", "abc")
    assert status == 1
    assert "abcd0000" in err
    assert "abcd1111" in err


def test_alloc_stop_restart_and_signal_send_what_was_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {
        f"PUT /v1/allocation/{AID}/stop": recorded("allocations", "stop"),
        f"PUT /v1/client/allocation/{AID}/restart": {"Index": 0},
        f"PUT /v1/client/allocation/{AID}/signal": {"Index": 0},
    }
    with answering(routes() | more, monkeypatch) as agent:
        status, out, _ = run(capsys, "alloc", "stop", "-detach", AID)
        assert (status, out.strip()) == (0, recorded("allocations", "stop")["EvalID"])
        assert run(capsys, "alloc", "restart", AID, "task")[0] == 0
        assert agent.asked[-1][2] == {"TaskName": "task", "AllTasks": False}
        assert run(capsys, "alloc", "signal", "-s", "SIGUSR1", AID)[0] == 0
        assert agent.asked[-1][2] == {"Signal": "SIGUSR1", "Task": ""}


def test_logs_ask_for_the_only_task_and_show_its_bytes(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nomadpy.cli.main import main

    lines = "".join(f"line {i}\n" for i in range(30)).encode()
    framed = json.dumps({"Data": base64.b64encode(lines).decode(), "File": "f", "Offset": 9})
    with answering(
        routes() | {f"GET /v1/client/fs/logs/{AID}": (200, "{}" + framed + "{}")}, monkeypatch
    ) as agent:
        assert main(["logs", AID]) == 0
        assert capfdbinary.readouterr().out == lines
        query = agent.asked[-1][1]
        assert (query["task"], query["type"], query["follow"]) == ("task", "stdout", "false")
        assert main(["logs", "-stderr", "-tail", "-n", "2", AID, "task"]) == 0
        assert capfdbinary.readouterr().out == b"line 28\nline 29\n"
        query = agent.asked[-1][1]
        assert (query["type"], query["origin"]) == ("stderr", "end")


def test_logs_of_an_unknown_task_name_the_tasks_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(routes(), monkeypatch):
        status, _, err = run(capsys, "logs", AID, "nope")
    assert status == 1
    assert "it has: task" in err


def test_logs_of_a_job_take_its_running_allocation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {
        "GET /v1/jobs": [{**recorded("jobs", "list")[0], "ID": "shell"}],
        "GET /v1/job/shell/allocations": recorded("allocations", "list"),
        f"GET /v1/client/fs/logs/{AID}": (200, "{}"),
    }
    with answering(routes() | more, monkeypatch):
        assert run(capsys, "logs", "-job", "shell")[0] == 0


def test_frames_may_be_cut_anywhere_and_an_errors_text_is_an_error() -> None:
    whole = b'{"Data":"YQ=="}{}{"Data":"YmM=","File":"x{y"}'
    for size in range(1, len(whole)):
        chunks = [whole[i : i + size] for i in range(0, len(whole), size)]
        assert b"".join(frames(chunks)) == b"abc"
    with pytest.raises(CliError, match="no such file"):
        list(frames([b"stat x: no such file"]))
    with pytest.raises(CliError, match="within a frame"):
        list(frames([b'{"Data":"YQ=']))


def test_fs_lists_folders_and_prints_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stat(query: dict[str, str], _body: object) -> Any:
        if query["path"] == "/":
            return {**recorded("allocations", "fs-stat"), "IsDir": True}
        if query["path"] == "none":
            return (404, "stat none: no such file or directory")
        return recorded("allocations", "fs-stat")

    more = {
        f"GET /v1/client/fs/stat/{AID}": stat,
        f"GET /v1/client/fs/ls/{AID}": recorded("allocations", "fs-ls"),
        f"GET /v1/client/fs/stream/{AID}": recorded("allocations", "fs-stream"),
    }
    with answering(routes() | more, monkeypatch):
        assert "alloc/" in run(capsys, "alloc", "fs", AID)[1]
        assert "-rw-r--r--" in run(capsys, "alloc", "fs", "-stat", AID, "f")[1]
        assert run(capsys, "alloc", "fs", AID, "none")[0] == 1


def test_nodes_are_listed_and_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(routes(), monkeypatch):
        status, out, _ = run(capsys, "node", "status")
        assert status == 0
        assert out.splitlines()[1].split()[0] == NID[:8]
        status, out, _ = run(capsys, "node", "status", "-stats", NID[:6])
        assert status == 0
        for words in ("Driver Status", "Allocated Resources", "Node Events", "MHz"):
            assert words in out
        assert "cpu.arch" in run(capsys, "node", "status", "-verbose", NID)[1]
        assert run(capsys, "node", "status", "-quiet")[1].strip() == NID


def test_self_is_the_asked_agents_node(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    about = recorded("agent", "self")
    with answering(routes() | {"GET /v1/agent/self": about}, monkeypatch) as agent:
        assert run(capsys, "node", "status", "-self", "-short")[0] == 0
        agent.routes["GET /v1/agent/self"] = {"stats": {}}
        status, _, err = run(capsys, "node", "status", "-self")
        assert (status, "runs no client" in err) == (1, True)


def test_drain_sends_the_deadline_and_follows_to_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {f"PUT /v1/node/{NID}/drain": recorded("nodes", "drain")}
    with answering(routes() | more, monkeypatch) as agent:
        line = ["node", "drain", "-enable", "-deadline", "1m30s", "-m", "kernel", NID]
        status, out, _ = run(capsys, *line)
        assert status == 0
        body = agent.of(f"PUT /v1/node/{NID}/drain")[0][1]
        assert body["DrainSpec"] == {"Deadline": 90_000_000_000, "IgnoreSystemJobs": False}
        assert body["Meta"] == {"message": "kernel"}
        assert f'Drain of node "{NID[:8]}" is' in out
        assert run(capsys, "node", "drain", "-disable", NID)[0] == 0
        body = agent.of(f"PUT /v1/node/{NID}/drain")[1][1]
        assert (body["DrainSpec"], body["MarkEligible"]) == (None, True)
        assert run(capsys, "node", "drain", "-enable", "-force", "-detach", NID)[0] == 0
        assert agent.of(f"PUT /v1/node/{NID}/drain")[2][1]["DrainSpec"]["Deadline"] == -1


@pytest.mark.parametrize(
    "line",
    [
        ["node", "drain", NID],
        ["node", "drain", "-enable", "-disable", NID],
        ["node", "drain", "-enable", "-force", "-no-deadline", NID],
        ["node", "drain", "-enable", "-deadline", "soon", NID],
        ["node", "drain", "-enable"],
        ["node", "eligibility", NID],
    ],
)
def test_a_drain_that_makes_no_sense_is_refused(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, *line)
    assert status == 1
    assert "-help" in err


def test_eligibility(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    more = {f"PUT /v1/node/{NID}/eligibility": recorded("nodes", "ineligible")}
    with answering(routes() | more, monkeypatch) as agent:
        assert "ineligible" in run(capsys, "node", "eligibility", "-disable", NID)[1]
        assert agent.asked[-1][2]["Eligibility"] == "ineligible"


def test_servers_are_listed_with_the_leader(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {
        "GET /v1/agent/members": recorded("agent", "members"),
        "GET /v1/status/leader": recorded("agent", "leader"),
        "GET /v1/operator/raft/configuration": recorded("agent", "raft"),
        "GET /v1/operator/autopilot/health": recorded("agent", "autopilot-health"),
        "GET /v1/operator/scheduler/configuration": recorded("agent", "scheduler"),
        "PUT /v1/operator/scheduler/configuration": recorded("agent", "scheduler-set"),
        "GET /v1/operator/keyring/keys": recorded("agent", "keyring"),
        "GET /v1/metrics": recorded("agent", "metrics"),
        "PUT /v1/system/gc": (200, ""),
    }
    with answering(more, monkeypatch) as agent:
        out = run(capsys, "server", "members")[1]
        assert out.splitlines()[1].split()[:5] == [
            "vm.global",
            "127.0.0.1",
            "27647",
            "alive",
            "true",
        ]
        agent.routes["GET /v1/status/leader"] = (500, "No cluster leader")
        assert "No cluster leader" in run(capsys, "server", "members")[1]
        assert "leader" in run(capsys, "operator", "raft", "list-peers")[1]
        assert "Healthy          = true" in run(capsys, "operator", "autopilot", "health")[1]
        assert "binpack" in run(capsys, "operator", "scheduler", "get-config")[1]
        line = ["operator", "scheduler", "set-config", "-scheduler-algorithm", "spread"]
        assert run(capsys, *line, "-preempt-batch-scheduler=true")[0] == 0
        query, body = agent.of("PUT /v1/operator/scheduler/configuration")[0]
        assert body["SchedulerAlgorithm"] == "spread"
        assert body["PreemptionConfig"]["BatchSchedulerEnabled"] is True
        assert query["cas"] == "5"
        assert "active" in run(capsys, "operator", "root", "keyring", "list")[1]
        assert run(capsys, "system", "gc") == (0, "", "")


def test_deployments_and_evaluations(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = recorded("jobs", "deployment")
    evaluation = recorded("jobs", "eval-read")
    more = {
        "GET /v1/deployments": [deployment],
        f"GET /v1/deployment/allocations/{deployment['ID']}": recorded("jobs", "allocations"),
        f"PUT /v1/deployment/fail/{deployment['ID']}": {"EvalID": "", "RevertedJobVersion": 1},
        f"PUT /v1/deployment/pause/{deployment['ID']}": {"EvalID": ""},
        "GET /v1/evaluations": [evaluation],
        f"GET /v1/evaluation/{evaluation['ID']}": evaluation,
        f"GET /v1/evaluation/{evaluation['ID']}/allocations": [],
    }
    with answering(more, monkeypatch) as agent:
        assert "successful" in run(capsys, "deployment", "list")[1]
        assert "Deployed" in run(capsys, "deployment", "status", deployment["ID"][:4])[1]
        assert "reverted to job version 1" in run(capsys, "deployment", "fail", deployment["ID"])[1]
        run(capsys, "deployment", "pause", deployment["ID"])
        assert agent.asked[-1][2]["Pause"] is True
        assert "TriggeredBy" in run(capsys, "eval", "status", evaluation["ID"])[1]
        assert "job-register" in run(capsys, "eval", "list")[1]


def test_status_finds_out_what_an_id_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"Matches": {"allocs": [AID], "nodes": [], "jobs": None}, "Truncations": {}}
    more = {"GET /v1/jobs": [], "PUT /v1/search": found}
    with answering(routes() | more, monkeypatch) as agent:
        status, out, _ = run(capsys, "status", AID[:8])
        assert (status, "Client Status" in out) == (0, True)
        agent.routes["PUT /v1/search"] = {"Matches": {"allocs": [AID], "nodes": [AID]}}
        assert "may be several things" in run(capsys, "status", AID[:8])[2]
        agent.routes["PUT /v1/search"] = {"Matches": {}}
        assert "Nothing has the prefix" in run(capsys, "status", "beef")[2]


def test_operator_api_passes_bodies_and_headers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    with answering({"GET /v1/jobs": [], "PUT /v1/system/gc": (500, "no")}, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
        done = subprocess.run(
            [sys.executable, "-m", "nomadpy", "operator", "api", "-verbose", "jobs"],
            input=b"",
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, b"[]")
        assert b"< HTTP 200" in done.stderr
        assert run(capsys, "operator", "api", "-X", "PUT", "/v1/system/gc")[0] == 1
        assert "curl -X GET" in run(capsys, "operator", "api", "-dryrun", "-X", "GET", "jobs")[1]


@contextmanager
def real_api(caller: Any) -> Iterator[str]:
    """The real API in a thread of its own; yields its address."""
    from serving import serving

    started, stop = threading.Event(), threading.Event()
    address: list[str] = []

    async def serve() -> None:
        async with serving(caller) as api:
            address.append(f"http://{api.server.addresses[0]}")
            started.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield address[0]
    finally:
        stop.set()
        thread.join(10)


def exec_caller(**replies: Any) -> Any:
    from serving import FakeCaller, answer

    return FakeCaller(
        Alloc__List=answer(recorded("allocations", "list")), Alloc__Get=answer(ALLOC), **replies
    )


def run_exec(address: str, stdin: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "nomadpy", "alloc", "exec", "-address", address, *words],
        input=stdin,
        capture_output=True,
        timeout=20,
        check=False,
    )


class Shell:
    """A stream that plays a command: echoes stdin to stdout, and at its end exits with 7."""

    def __init__(self) -> None:
        from serving import FakeStream

        self.inner = FakeStream([], echo=True)
        self.left = False
        self.received: list[dict[str, Any]] = []

    async def receive(self) -> bytes | None:
        return await self.inner.receive()

    async def send(self, chunk: bytes) -> None:
        message = json.loads(chunk)
        self.received.append(message)
        data = (message.get("stdin") or {}).get("data")
        if data:
            self.inner.push(json.dumps({"stdout": {"data": data}}).encode())
        if (message.get("stdin") or {}).get("close"):
            self.inner.push(json.dumps({"stderr": {"data": "ZXJy"}}).encode())
            self.inner.push(b'{"exited":true,"result":{"exit_code":7}}')
            self.inner.end()


def test_exec_connects_both_streams_and_ends_with_the_commands_code() -> None:
    shell = Shell()
    caller = exec_caller(ClientAlloc__Exec=shell)
    big = bytes(range(256)) * 400
    with real_api(caller) as address:
        done = run_exec(address, big, AID, "cat", "-v", "-h")
    assert (done.returncode, done.stderr) == (7, b"err")
    assert done.stdout == big
    call = next(request for name, request in caller.calls if name == "ClientAlloc.Exec")
    assert (call.command, call.task, call.tty) == (["cat", "-v", "-h"], "task", False)


def test_exec_that_is_refused_is_one_sentence() -> None:
    from nomadpy.errors import NotFoundError

    with real_api(exec_caller(ClientAlloc__Exec=NotFoundError("alloc is not running"))) as address:
        done = run_exec(address, b"", AID, "ls")
    assert done.returncode == 1
    assert done.stderr == b"Error executing: alloc is not running\n"


def test_exec_without_a_command_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(routes(), monkeypatch) as agent:
        status, _, err = run(capsys, "alloc", "exec", AID)
        assert (status, "A command is needed" in err) == (1, True)
        # An agent that does not upgrade answers with an error like any other.
        agent.routes[f"GET /v1/client/allocation/{AID}/exec"] = (403, "Permission denied")
        status, _, err = run(capsys, "alloc", "exec", AID, "ls")
        assert (status, "Permission denied" in err) == (1, True)
