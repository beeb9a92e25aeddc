"""The tree of commands: lazy, complete, and never a traceback."""

from __future__ import annotations

import importlib
import json
import pathlib
import subprocess
import sys
import time

import pytest
from faking import answering, recorded, run

from nomadpy.cli.command import Command
from nomadpy.cli.main import ALIASES, COMMANDS, find

HEAVY = (
    "aiohttp",
    "asyncio",
    "msgspec",
    "yaml",
    "click",
    "cryptography",
    "docker",
    "psutil",
)
CPU_S = 0.25


@pytest.mark.parametrize("name", COMMANDS)
def test_every_entry_is_a_command_of_that_name_with_a_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = COMMANDS[name]
    command = getattr(importlib.import_module(f"nomadpy.cli.{entry.module}"), entry.attribute)
    assert isinstance(command, Command)
    assert command.name == name
    status, out, _ = run(capsys, *name.split(), "-h")
    assert status == 0
    assert out.startswith(f"Usage: nomadpy {name}")
    names = [flag.name for flag in command.all_flags]
    assert len(names) == len(set(names))


def test_every_alias_leads_to_a_command() -> None:
    assert set(ALIASES.values()) <= set(COMMANDS)


def test_the_longest_command_wins() -> None:
    assert find(["operator", "raft", "list-peers", "-stale"]) == (
        "operator raft list-peers",
        ["-stale"],
    )
    assert find(["run", "a.json"]) == ("job run", ["a.json"])
    assert find(["status", "job"]) == ("status", ["job"])


def test_no_words_list_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == 127
    status, out, _ = run(capsys, "-help")
    assert status == 0
    assert "Common commands:" in out
    status, out, _ = run(capsys, "job")
    assert status == 0
    assert "job plan" in out


@pytest.mark.parametrize(
    ("line", "hint"), [(["jb"], "`job`"), (["job", "stauts"], "`job status`"), (["zzz"], "zzz")]
)
def test_an_unknown_command_is_named_with_the_nearest(
    line: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, *line)
    assert (status, out) == (127, "")
    assert hint in err


def test_a_wrong_flag_says_where_help_is(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "job", "status", "-shrot")
    assert status == 1
    assert "did you mean -short?" in err
    assert "nomadpy job status -help" in err


def test_too_many_operands_say_what_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "job", "status", "a", "b")
    assert status == 1
    assert "either no arguments or one" in err


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:9", "Start one with: nomadpy agent -dev, or set NOMAD_ADDR"),
        ("127.0.0.1:9", "No agent answers at http://127.0.0.1:9"),
        ("http://no-such-host.invalid:1", "cannot be resolved"),
        ("ftp://127.0.0.1", "must begin with http://"),
        ("http://127.0.0.1:port", "Correct NOMAD_ADDR"),
        ("unix:///no/such.sock", "No agent answers at unix:///no/such.sock"),
    ],
)
def test_an_agent_that_cannot_be_reached_is_one_clear_sentence(
    address: str, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOMAD_ADDR", address)
    for line in (["job", "status"], ["alloc", "logs", "abcd"], ["monitor"]):
        status, out, err = run(capsys, *line)
        assert (status, out) == (1, "")
        assert words in err


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((403, "Permission denied"), "NOMAD_TOKEN"),
        ((500, "No cluster leader"), "nomadpy server members"),
        ((500, ""), "no explanation"),
        ((200, "<html>"), "not a Nomad agent"),
        ((200, "[1, 2]"), "Internal error"),
        ((200, '{"a": 1}'), "Internal error"),
    ],
)
def test_a_strange_answer_is_a_sentence_and_exit_code_1(
    reply: tuple[int, str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answering({"GET /v1/jobs": reply}, monkeypatch):
        status, _, err = run(capsys, "job", "status")
    assert status == 1
    assert words in err


def test_settings_come_from_flags_before_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering({"GET /v1/jobs": []}, monkeypatch) as agent:
        monkeypatch.setenv("NOMAD_TOKEN", "from-environment")
        monkeypatch.setenv("NOMAD_NAMESPACE", "prod")
        monkeypatch.setenv("NOMAD_REGION", "eu")
        assert run(capsys, "job", "status") == (0, "No running jobs\n", "")
        assert agent.asked[-1][1] == {"namespace": "prod", "region": "eu"}
        assert agent.tokens[-1] == "from-environment"
        run(capsys, "job", "status", "-namespace=*", "-token", "from-flag")
        assert agent.asked[-1][1]["namespace"] == "*"
        assert agent.tokens[-1] == "from-flag"
        monkeypatch.setenv("NOMAD_ADDR", "http://127.0.0.1:9")
        assert run(capsys, "job", "status", "-address", agent.address)[0] == 0


def test_a_fault_of_our_own_is_told_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nomadpy.cli.main.find", lambda line: 1 / 0)
    status, _, err = run(capsys, "version")
    assert status == 1
    assert "Internal error: ZeroDivisionError" in err
    assert "NOMADPY_DEBUG=1" in err


def test_status_is_cheap_and_imports_nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: what is imported, and the processor time of the whole command."""
    script = (
        "import resource, sys, json\n"
        "from nomadpy.cli.main import main\n"
        "status = main(['job', 'status'])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "print(json.dumps([status, used.ru_utime + used.ru_stime, heavy]), file=sys.stderr)\n"
    )
    with answering({"GET /v1/jobs": recorded("jobs", "list")}, monkeypatch):
        best = min(_measured(script) for _ in range(3))
    assert best < CPU_S


def _measured(script: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    status, used, heavy = json.loads(done.stderr)
    assert (status, heavy) == (0, [])
    assert "web" in done.stdout
    return float(used)


def test_a_reader_that_goes_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**recorded("jobs", "list")[0], "ID": f"job-{i}"} for i in range(5000)]
    with answering({"GET /v1/jobs": rows}, monkeypatch):
        done = subprocess.run(
            f"{sys.executable} -m nomadpy job status | head -1",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stderr == ""
    assert done.stdout.startswith("ID")


def test_interrupting_ends_quietly_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    def slow(_query: object, _body: object) -> list[object]:
        time.sleep(3)
        return []

    with answering({"GET /v1/jobs": slow}, monkeypatch) as agent:
        process = subprocess.Popen(
            [sys.executable, "-m", "nomadpy", "job", "status"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not agent.asked:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_tls_certificates_are_made_shown_and_never_overwritten(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "tls", "cert", "create", "-server")[0] == 1
    status, out, _ = run(capsys, "tls", "ca", "create")
    assert status == 0
    assert "nomad-agent-ca.pem" in out
    status, _, err = run(capsys, "tls", "ca", "create")
    assert status == 1
    assert "is not overwritten" in err
    line = ["tls", "cert", "create", "-server", "-additional-ipaddress", "10.0.0.7"]
    status, out, _ = run(capsys, *line)
    assert status == 0
    assert "global-server-nomad.pem" in out
    status, out, _ = run(capsys, "tls", "cert", "info", "global-server-nomad.pem")
    assert status == 0
    assert "server.global.nomad" in out
    assert "10.0.0.7" in out
    status, out, _ = run(capsys, "tls", "ca", "info", "nomad-agent-ca.pem")
    assert "Is CA         = true" in out
    assert run(capsys, "tls", "cert", "create", "-server", "-cli")[0] == 1
    assert run(capsys, "tls", "cert", "create", "-cli", "-region", "no good")[0] == 1
    status, _, err = run(capsys, "tls", "ca", "info", "nothing.pem")
    assert "No such file" in err
    (tmp_path / "bad.pem").write_text("nonsense")
    assert "not a PEM certificate" in run(capsys, "tls", "cert", "info", "bad.pem")[2]


def test_a_certificate_that_is_not_trusted_says_what_to_set(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssl

    monkeypatch.chdir(tmp_path)
    run(capsys, "tls", "ca", "create")
    run(capsys, "tls", "cert", "create", "-server")
    run(capsys, "tls", "cert", "create", "-cli")
    with answering({"GET /v1/jobs": []}, monkeypatch) as agent:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile="nomad-agent-ca.pem")
        context.load_cert_chain("global-server-nomad.pem", "global-server-nomad-key.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        agent.server.socket = context.wrap_socket(agent.server.socket, server_side=True)
        assert "https://" in run(capsys, "job", "status")[2]
        monkeypatch.setenv("NOMAD_ADDR", agent.address.replace("http://", "https://"))
        assert "Set NOMAD_CACERT" in run(capsys, "job", "status")[2]
        monkeypatch.setenv("NOMAD_CACERT", "nomad-agent-ca.pem")
        assert "NOMAD_CLIENT_CERT" in run(capsys, "job", "status")[2]
        monkeypatch.setenv("NOMAD_CLIENT_CERT", "global-cli-nomad.pem")
        monkeypatch.setenv("NOMAD_CLIENT_KEY", "global-cli-nomad-key.pem")
        assert run(capsys, "job", "status")[:2] == (0, "No running jobs\n")
        monkeypatch.setenv("NOMAD_TLS_SERVER_NAME", "server.global.nomad")
        assert run(capsys, "job", "status")[0] == 0
        monkeypatch.setenv("NOMAD_TLS_SERVER_NAME", "server.mars.nomad")
        assert "is not trusted" in run(capsys, "job", "status")[2]
        monkeypatch.setenv("NOMAD_SKIP_VERIFY", "1")
        assert run(capsys, "job", "status")[0] == 0
        monkeypatch.setenv("NOMAD_CACERT", "none.pem")
        assert "TLS files cannot be used" in run(capsys, "job", "status")[2]
