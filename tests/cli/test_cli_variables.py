"""`var ...` and `operator root keyring ...`: what is sent, what is shown, and a lock that ends a command when it is lost."""

from __future__ import annotations

import io
import json
import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any

import psutil
import pytest
from faking import answering, run

from nomadpy.cli.errors import CliError
from nomadpy.cli.variable_spec import as_hcl, read_spec

VARIABLE = {
    "Namespace": "default",
    "Path": "app/config",
    "CreateIndex": 7,
    "ModifyIndex": 9,
    "CreateTime": 1_795_393_104_553_227_679,
    "ModifyTime": 1_795_393_204_553_227_679,
    "Items": {"user": "alice", "password": "s3cret"},
}
ZERO = {
    "Namespace": "default",
    "Path": "app/config",
    "CreateIndex": 0,
    "ModifyIndex": 0,
    "CreateTime": 0,
    "ModifyTime": 0,
}
ROUTE = "PUT /v1/var/app/config"


def echo(query: dict[str, str], body: Any) -> Any:
    """A server that stores whatever it is sent."""
    return {**VARIABLE, "ModifyIndex": 7, **body}


def stdin(monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.encode())))


# -- get, list, purge, init -----------------------------------------------------------------------------


def test_get_shows_a_table_json_hcl_or_one_item(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering({"GET /v1/var/app/config": VARIABLE}, monkeypatch):
        status, out, _ = run(capsys, "var", "get", "-out=table", "app/config")
        assert status == 0
        assert "Check Index = 9" in out
        assert out.rstrip().endswith("Items\npassword = s3cret\nuser     = alice")
        assert json.loads(run(capsys, "var", "get", "app/config")[1]) == VARIABLE
        assert run(capsys, "var", "get", "-item", "password", "app/config")[1] == "s3cret"
        assert run(capsys, "var", "get", "-out=none", "app/config")[1] == ""
        hcl = run(capsys, "var", "get", "-out", "hcl", "app/config")[1]
        assert read_spec(hcl, "hcl", name="x") == VARIABLE
        status, _, err = run(capsys, "var", "get", "-item", "none", "app/config")
        assert (status, err) == (1, 'Variable "app/config" does not contain item "none"\n')
        status, _, err = run(capsys, "var", "get", "-out=go-template", "app/config")
        assert (status, "use json" in err) == (1, True)


def test_get_of_nothing_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering({"GET /v1/var/x": (404, "variable not found")}, monkeypatch):
        assert run(capsys, "var", "get", "x")[::2] == (1, 'Variable "x" not found\n')


def test_list_shows_paths_and_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {k: v for k, v in VARIABLE.items() if k != "Items"}
    with answering({"GET /v1/vars": [row]}, monkeypatch) as agent:
        out = run(capsys, "var", "list", "-out=table", "-namespace=*", "-per-page=1", "app/")[1]
        assert out.splitlines()[0] == "Namespace  Path        Last Updated"
        assert agent.of("GET /v1/vars")[0][0] == {
            "prefix": "app/",
            "per_page": "1",
            "namespace": "*",
        }
        assert run(capsys, "var", "list", "-out=terse")[1] == "app/config\n"
        assert json.loads(run(capsys, "var", "list")[1]) == [row]
    with answering({"GET /v1/vars": []}, monkeypatch):
        assert run(capsys, "var", "list", "-out=table")[1] == "No variables found\n"


def test_purge_with_and_without_a_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering({"DELETE /v1/var/app/config": (204, "")}, monkeypatch) as agent:
        out = run(capsys, "var", "purge", "-check-index=7", "app/config")[1]
        assert out == 'Successfully purged variable "app/config"!\n'
        assert agent.of("DELETE /v1/var/app/config")[0][0] == {"cas": "7"}
    with answering({"DELETE /v1/var/app/config": (409, json.dumps(VARIABLE))}, monkeypatch):
        status, _, err = run(capsys, "var", "purge", "-check-index=7", "app/config")
        assert status == 1
        assert "the variable on the server has index 9" in err
        assert "add -check-index=9." in err


def test_init_writes_an_example_that_put_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "var", "init")[1] == (
        "Example variable specification written to spec.nv.hcl\n"
    )
    assert run(capsys, "var", "init", "-quiet", "-out=json", "mine.json")[:2] == (0, "")
    assert run(capsys, "var", "init")[0] == 1
    with answering({"PUT /v1/var/path/to/variable": echo}, monkeypatch) as agent:
        assert run(capsys, "var", "put", "@spec.nv.hcl")[0] == 0
        assert run(capsys, "var", "put", "@mine.json")[0] == 0
        sent = [body["Items"] for _, body in agent.of("PUT /v1/var/path/to/variable")]
        assert sent == [{"key1": "value 1", "key2": "value 2"}] * 2


# -- put ------------------------------------------------------------------------------------------------


def test_put_checks_that_there_is_none_unless_it_is_told_otherwise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering({ROUTE: echo}, monkeypatch) as agent:
        status, out, err = run(capsys, "var", "put", "-out=none", "app/config", "a=b=c", "d=")
        assert (status, err) == (0, "")
        assert out == 'Created variable "app/config" with modify index 7\n'
        run(capsys, "var", "put", "-check-index=9", "app/config", "a=b")
        run(capsys, "var", "put", "-force", "app/config", "a=b")
        (first, second, third) = agent.of(ROUTE)
        assert first == ({"cas": "0"}, {"Path": "app/config", "Items": {"a": "b=c", "d": ""}})
        assert second[0] == {"cas": "9"}
        assert third[0] == {}
        assert run(capsys, "var", "put", "-force", "-check-index=1", "app/config", "a=b")[0] == 1


def test_values_come_from_files_standard_input_or_as_they_stand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "key").write_text("line 1\nline 2\n")
    stdin(monkeypatch, "from stdin\n")
    with answering({ROUTE: echo}, monkeypatch) as agent:
        line = [f"file=@{tmp_path}/key", "in=-", "at=\\@x", "minus=\\-", "back=\\x"]
        assert run(capsys, "var", "put", "app/config", *line)[0] == 0
        assert agent.of(ROUTE)[0][1]["Items"] == {
            "file": "line 1\nline 2\n",
            "in": "from stdin\n",
            "at": "@x",
            "minus": "-",
            "back": "\\x",
        }


def test_a_specification_carries_its_check_and_the_line_wins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering({ROUTE: echo, "PUT /v1/var/other": echo}, monkeypatch) as agent:
        stdin(monkeypatch, json.dumps(VARIABLE))
        assert run(capsys, "var", "put", "-in=json", "-", "user=bob")[0] == 0
        assert agent.of(ROUTE)[0][0] == {"cas": "9"}
        assert agent.of(ROUTE)[0][1]["Items"] == {"user": "bob", "password": "s3cret"}
        stdin(monkeypatch, as_hcl(VARIABLE))
        assert run(capsys, "var", "put", "-in=hcl", "other", "-", "user=bob")[0] == 0
        assert agent.of("PUT /v1/var/other")[0][0] == {"cas": "0"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["app/config", "novalue"], '"novalue" is not key=value'),
        (["app/config", "=x"], '"=x" is not key=value'),
        (["@/none/such"], "cannot be read"),
        (["-in=yaml", "-"], "-in is json or hcl"),
        (["-out=xml", "app/config", "a=b"], "-out is one of"),
        (["app/config", "a=-", "b=-"], "only once"),
        (["-", "x=y"], "is not JSON"),
        ([], "at least one argument"),
    ],
)
def test_a_line_that_makes_no_variable_is_refused(
    line: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin(monkeypatch, "text")
    with answering({}, monkeypatch) as agent:
        status, _, err = run(capsys, "var", "put", *line)
        assert (status, agent.asked) == (1, [])
        assert words in err


@pytest.mark.parametrize(
    ("conflict", "line", "words"),
    [
        (VARIABLE, [], "the variable on the server has index 9"),
        (VARIABLE, [], "add -check-index=9 or -force."),
        (ZERO, [], 'The variable "app/config" is locked'),
        (ZERO, ["-force"], 'The variable "app/config" is locked'),
        (ZERO, ["-check-index=5"], "there is no such variable, or it is locked"),
    ],
)
def test_a_conflict_says_what_is_in_the_way(
    conflict: Any,
    line: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answering({ROUTE: (409, json.dumps(conflict))}, monkeypatch):
        status, _, err = run(capsys, "var", "put", *line, "app/config", "a=b")
        assert status == 1
        assert words in err
        assert "s3cret" not in err


@pytest.mark.parametrize(
    "text",
    [
        'path = "a"\nitems { a = [1] }',
        'path = "a"\nitems = "x"',
        'pth = "a"',
        "items {",
        "items = { a = null }",
    ],
)
def test_a_wrong_hcl_specification_is_refused(text: str) -> None:
    with pytest.raises(CliError):
        read_spec(text, "hcl", name="spec.hcl")


@pytest.mark.parametrize("text", ["[]", '{"Items": []}', '{"Items": {"a": 1}}', "{"])
def test_a_wrong_json_specification_is_refused(text: str) -> None:
    with pytest.raises(CliError):
        read_spec(text, "json", name="spec.json")


@pytest.mark.parametrize(
    "items",
    [
        {},
        {"plain": 'quotes " and \\ and \n lines'},
        {"with space": "x", "a.b": "y", "": "z"},
        {"interpolation": "${not.one} %{nor this} $$ %%"},
        {"unicode": "grün \u2603 \x07"},
    ],
)
def test_hcl_reads_back_what_was_written(items: dict[str, str]) -> None:
    spec = {"Path": "p", "Items": items}
    assert read_spec(as_hcl(spec), "hcl", name="x") == spec


# -- lock -----------------------------------------------------------------------------------------------


class Lockable:
    """A server's side of one lock."""

    def __init__(self, ttl: str = "15s") -> None:
        self.ttl = ttl
        self.asked: list[str] = []
        self.bodies: list[Any] = []
        self.busy = 0
        self.renewal: Any = None  # what a renewal answers, None for yes

    def put(self, query: dict[str, str], body: Any) -> Any:
        (operation,) = query
        self.asked.append(operation)
        self.bodies.append(body)
        if operation == "lock-acquire" and self.busy:
            self.busy -= 1
            return 409, json.dumps(ZERO)
        if operation == "lock-renew" and self.renewal is not None:
            return self.renewal
        return {**VARIABLE, "Lock": {"ID": "the-id", "TTL": self.ttl, "LockDelay": "1s"}}

    @property
    def routes(self) -> dict[str, Any]:
        return {ROUTE: self.put, "GET /v1/var/app/config": VARIABLE}


def test_a_command_runs_while_the_lock_is_held(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Lockable()
    with answering(server.routes, monkeypatch):
        script = "echo $NOMADPY_LOCK_PATH $NOMADPY_LOCK_ID $NOMADPY_LOCK_INDEX; exit 3"
        status, out, err = run(capfd, "var", "lock", "-ttl=20s", "app/config", script)
        assert (status, out, err) == (3, "app/config the-id 9\n", "")
        assert server.asked == ["lock-acquire", "lock-release"]
        assert server.bodies[0]["Lock"] == {"TTL": 20_000_000_000, "LockDelay": 15_000_000_000}
        assert server.bodies[1] == {"Path": "app/config", "Lock": {"ID": "the-id"}}


def test_it_waits_for_the_lock_or_returns_early(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Lockable()
    server.busy = 2
    with answering(server.routes, monkeypatch):
        assert run(capfd, "var", "lock", "app/config", "true")[0] == 0
        assert server.asked == ["lock-acquire"] * 3 + ["lock-release"]
        server.busy = 1
        status, _, err = run(capfd, "var", "lock", "-early-return", "app/config", "true")
        assert (status, err) == (1, 'The lock of "app/config" is held by another\n')


def test_arguments_of_the_command_are_its_own(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"Items": {"a": "b"}}))
    server = Lockable()
    with answering(server.routes, monkeypatch):
        line = ["-shell=false", "app/config", f"@{tmp_path}/spec.json", "echo", "-ttl", "$HOME"]
        assert run(capfd, "var", "lock", *line)[:2] == (0, "-ttl $HOME\n")
        assert server.bodies[0]["Items"] == {"a": "b"}
        status, _, err = run(capfd, "var", "lock", "-shell=false", "app/config", "/none/such")
        assert (status, err) == (1, "/none/such cannot be run: No such file or directory\n")
        assert server.asked[-1] == "lock-release"


def test_the_lock_is_renewed_while_the_command_runs(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Lockable(ttl="1s")
    with answering(server.routes, monkeypatch):
        assert run(capfd, "var", "lock", "app/config", "sleep 1.6")[0] == 0
        renewals = server.asked.count("lock-renew")
        assert 3 <= renewals <= 6


@pytest.mark.parametrize(
    ("renewal", "words"),
    [
        ((409, json.dumps(ZERO)), "the servers gave it up"),
        ((404, "variable doesn't exist"), "the servers gave it up"),
        ((500, "No cluster leader"), "could not be renewed in time"),
    ],
)
def test_a_lost_lock_ends_the_command_and_all_it_started(
    renewal: Any,
    words: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    server = Lockable(ttl="1s")
    server.renewal = renewal
    with answering(server.routes, monkeypatch):
        began = time.monotonic()
        script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
        status, _, err = run(capfd, "var", "lock", "-max-retry=100", "app/config", script)
        assert (status, words in err) == (1, True)
        assert time.monotonic() - began < 5
        pid = int((tmp_path / "pid").read_text())
        deadline = time.monotonic() + 5
        while _runs(pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether the process is alive; one that nobody has reaped yet is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_some_failed_renewals_are_survived_and_too_many_are_not(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Lockable(ttl="1s")
    server.renewal = (500, "No cluster leader")

    def heal() -> None:
        server.renewal = None

    with answering(server.routes, monkeypatch):
        timer = threading.Timer(0.6, heal)
        timer.start()
        assert run(capfd, "var", "lock", "-max-retry=100", "app/config", "sleep 1.5")[0] == 0
        timer.join()
        server.renewal = (500, "No cluster leader")
        status, _, err = run(capfd, "var", "lock", "-max-retry=1", "app/config", "sleep 30")
        assert (status, "2 renewals in a row failed" in err) == (1, True)


def test_a_command_that_ignores_the_end_is_killed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nomadpy.cli.variable_lock.END_S", 0.5)
    server = Lockable(ttl="1s")
    server.renewal = (409, json.dumps(ZERO))
    with answering(server.routes, monkeypatch):
        began = time.monotonic()
        script = "trap '' TERM; while :; do sleep 0.1; done"
        status, _, err = run(capfd, "var", "lock", "app/config", script)
        assert (status, "is killed" in err) == (1, True)
        assert time.monotonic() - began < 5


def test_a_signal_ends_the_command_and_the_lock_is_given_back(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Lockable()
    with answering(server.routes, monkeypatch):
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        status = run(capfd, "var", "lock", "-shell=false", "app/config", "sleep", "30")[0]
        timer.join()
        assert status == 128 + signal.SIGTERM
        assert server.asked == ["lock-acquire", "lock-release"]


def test_a_wrong_duration_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering({}, monkeypatch) as agent:
        status, _, err = run(capsys, "var", "lock", "-ttl=soon", "app/config", "true")
        assert (status, agent.asked) == (1, [])
        assert '-ttl "soon" is not a duration' in err


# -- root keys ------------------------------------------------------------------------------------------

KEY = {
    "KeyID": "73161f0a-5238-4726-a4f7-7b8e9af9edcf",
    "Algorithm": "aes256-gcm",
    "State": "inactive",
    "CreateTime": 1_795_393_104_553_227_679,
    "CreateIndex": 5,
    "ModifyIndex": 5,
    "PublishTime": 0,
}


def test_keys_are_rotated_and_removed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rotate = "PUT /v1/operator/keyring/rotate"
    remove = f"DELETE /v1/operator/keyring/key/{KEY['KeyID']}"
    routes = {rotate: {"Key": KEY}, "GET /v1/operator/keyring/keys": [KEY], remove: (200, "")}
    with answering(routes, monkeypatch) as agent:
        assert run(capsys, "operator", "root", "keyring", "rotate", "-full")[0] == 0
        assert agent.of(rotate)[0][0] == {"full": "true"}
        assert run(capsys, "operator", "root", "keyring", "rotate", "-prepublish=48h")[0] == 0
        assert int(agent.of(rotate)[1][0]["publish_time"]) > time.time_ns() + 47 * 3600 * 10**9
        assert run(capsys, "operator", "root", "keyring", "rotate", "-prepublish=x")[0] == 1
        assert (
            run(capsys, "operator", "root", "keyring", "rotate", "-prepublish=1h", "-full")[0] == 1
        )
        out = run(capsys, "operator", "root", "keyring", "list")[1]
        assert "73161f0a  inactive" in out
        assert run(capsys, "operator", "root", "keyring", "remove", "-force", "7316")[0] == 0
        assert agent.of(remove)[0][0] == {"force": "true"}
        status, _, err = run(capsys, "operator", "root", "keyring", "remove", "ffff")
        assert (status, 'begins with "ffff"' in err) == (1, True)
