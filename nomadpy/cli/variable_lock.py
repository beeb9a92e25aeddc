"""`var lock`: hold a variable's lock while a command runs, and end the command when the lock is lost.

The lease is counted from before the request that renewed it was sent, so the command here believes itself the holder
for no longer than the servers do. When it is lost, the command is ended before the lock's delay is over.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from nomadpy.cli.client import Answered, Client
from nomadpy.cli.command import Call, command
from nomadpy.cli.errors import ApiError, CliError, UsageError
from nomadpy.cli.flags import Flag, number, text
from nomadpy.cli.output import parse_duration, warn
from nomadpy.cli.variable import decoded, described, path_of
from nomadpy.clock import SystemClock

DEFAULT_S = 15.0
DEFAULT_RETRIES = 5
WAIT_S = 30
END_S = 5.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _LostError(Exception):
    """The lock is not ours any more, or nobody can say so in time."""


class _Held(NamedTuple):
    """What acquiring gave. ends: monotonic seconds."""

    lock_id: str
    fence: int
    ttl_s: float
    delay_s: float
    ends: float


@command(
    "var lock [options] <path|@file> [@file] <command>...",
    """Run a command while this machine holds the lock of a variable.

It waits for the lock, renews it until the command ends, releases it, and ends as the command did. When the
lock is lost the command is told to end (SIGTERM), and killed 5 seconds later; the exit code is 1 then.
The command sees NOMADPY_LOCK_PATH, NOMADPY_LOCK_ID and NOMADPY_LOCK_INDEX, a number that grows with every
holder: give it along with each write to a store that can refuse older ones.""",
    flags=(
        text(
            "ttl",
            "How long the lock lasts without a renewal: 10s to 24h, 15s by default.",
            "duration",
        ),
        text("delay", "How long nobody can have a lock that was lost; 15s by default.", "duration"),
        number(
            "max-retry",
            "How many renewals in a row may fail; 5 by default, and never beyond the ttl.",
        ),
        Flag("early-return", "Do not wait when another holds the lock: end with 1."),
        Flag("shell", "Run the command by $SHELL; the default. -shell=false runs it as it stands."),
        text(
            "in",
            "The form of a specification whose file does not tell: json (the default) or hcl.",
            "form",
        ),
        Flag("verbose", "Say what is done, on standard error."),
    ),
    operands=(2, None),
    flags_end_after=1,
)
def lock(call: Call) -> int:
    """Acquire, run, release."""
    clock = SystemClock()
    words = call.operands
    count = 2 if len(words) > 2 and words[1].startswith("@") and not words[0].startswith("@") else 1
    spec, line = words[:count], words[count:]
    variable = described(call, spec)
    if not variable.get("Path"):
        raise UsageError("A path is needed, as the first argument or in the specification")
    variable["Lock"] = {
        "TTL": _duration(call, "ttl"),
        "LockDelay": _duration(call, "delay"),
    }
    target = path_of(variable["Path"])
    held = _acquire(call, target, variable, clock)
    if call.options.on("verbose"):
        warn(f'Lock of "{variable["Path"]}" held')

    def client() -> Client:
        # A connection of its own each time: one that was kept may be long closed, and none may hang beyond the lease.
        return Client(call.client.settings, answer_s=max(1.0, held.ttl_s / 4))

    body = {"Path": variable["Path"], "Lock": {"ID": held.lock_id}}
    environment = {
        "NOMADPY_LOCK_PATH": variable["Path"],
        "NOMADPY_LOCK_ID": held.lock_id,
        "NOMADPY_LOCK_INDEX": str(held.fence),
    }
    lost = ""
    try:
        status = _run(call, line, environment, client, target, body, held, clock)
    except _LostError as error:
        status, lost = 1, str(error)
    finally:
        _release(client, target, body)
    if lost:
        raise CliError(f'The lock of "{variable["Path"]}" was lost: {lost}')
    return status


def _acquire(call: Call, target: str, variable: dict[str, Any], clock: SystemClock) -> _Held:
    said = False
    while True:
        began = clock.monotonic()
        answer = _put(call.client, target, "lock-acquire", variable)
        if answer.status != 409:
            given = decoded(answer, "acquiring the lock")
            ttl_s = _seconds(given["Lock"]["TTL"])
            return _Held(
                given["Lock"]["ID"],
                given["ModifyIndex"],
                ttl_s,
                _seconds(given["Lock"]["LockDelay"]),
                began + ttl_s,
            )
        if call.options.on("early-return"):
            raise CliError(f'The lock of "{variable["Path"]}" is held by another')
        if not said and call.options.on("verbose"):
            warn(f'Waiting for the lock of "{variable["Path"]}"')
            said = True
        _wait_for_change(call.client, target)


def _wait_for_change(client: Client, target: str) -> None:
    """Return when the variable changed, is free, or it is time to ask again."""
    found = client.raw("GET", target)
    if found.status == 200 and json.loads(found.body).get("Lock"):
        client.raw("GET", target, query={"index": found.nomad_index, "wait": f"{WAIT_S}s"})


def _run(
    call: Call,
    line: list[str],
    environment: dict[str, str],
    client: Callable[[], Client],
    target: str,
    body: dict[str, Any],
    held: _Held,
    clock: SystemClock,
) -> int:
    """Run the command and renew the lock beside it. Raises _LostError when the command was ended for it."""
    shell = "shell" not in call.options.given or call.options.on("shell")
    arguments = [os.environ.get("SHELL") or "/bin/sh", "-c", " ".join(line)] if shell else line
    try:
        child = subprocess.Popen(
            arguments, env={**os.environ, **environment}, start_new_session=True
        )
    except OSError as cause:
        raise CliError(f"{arguments[0]} cannot be run: {cause.strerror}") from cause
    retries = call.options.number("max-retry")
    retries = DEFAULT_RETRIES if retries is None else retries
    failed = 0
    ends = held.ends
    pause = held.ttl_s / 3
    with _passing_signals_to(child):
        while True:
            try:
                # Asked again well before the end, and at the end there is nothing left to wait for.
                left = max(0.0, min(pause, ends - clock.monotonic()))
                return _exit_code(child.wait(left))
            except subprocess.TimeoutExpired:
                began = clock.monotonic()
            try:
                if began >= ends:
                    raise _LostError("it could not be renewed in time")
                if _renew(client, target, body):
                    failed, ends, pause = 0, began + held.ttl_s, held.ttl_s / 3
                    continue
                failed += 1
                if failed > retries:
                    raise _LostError(f"{failed} renewals in a row failed")
                pause = min(1.0, held.ttl_s / 10)
                if call.options.on("verbose"):
                    warn("A renewal of the lock failed; trying again")
            except _LostError:
                _end(child)
                raise


def _renew(client: Callable[[], Client], target: str, body: dict[str, Any]) -> bool:
    """Whether the lock was renewed; False when that is not known. Raises _LostError when it was refused."""
    try:
        answer = _put(client(), target, "lock-renew", body)
    except CliError:
        return False
    if answer.status in (404, 409):
        raise _LostError("the servers gave it up")
    return answer.status == 200


def _release(client: Callable[[], Client], target: str, body: dict[str, Any]) -> None:
    """Give it back; without an answer it expires by itself."""
    try:
        answer = _put(client(), target, "lock-release", body)
        if answer.status >= 500:
            raise ApiError(answer.status, answer.body.decode("utf-8", "replace"), "releasing")
    except CliError as error:
        warn(f"The lock was not released, it will expire: {error}")


def _put(client: Client, target: str, operation: str, body: dict[str, Any]) -> Answered:
    return client.raw("PUT", target, data=json.dumps(body).encode(), query={operation: ""})


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the command and all it started, SIGKILL to what is left."""
    _signal(child, signal.SIGTERM)
    try:
        child.wait(END_S)
    except subprocess.TimeoutExpired:
        warn("The command did not end, and is killed")
    _signal(child, signal.SIGKILL)
    child.wait()


def _signal(child: subprocess.Popen[bytes], number_: int) -> None:
    try:
        os.killpg(child.pid, number_)
    except ProcessLookupError:
        return


@contextmanager
def _passing_signals_to(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """What would end this process ends the command instead; then this ends as it does."""

    def pass_on(number_: int, _frame: FrameType | None) -> None:
        _signal(child, number_)

    before = {number_: signal.signal(number_, pass_on) for number_ in SIGNALS}
    try:
        yield
    finally:
        for number_, handler in before.items():
            signal.signal(number_, handler)


def _exit_code(code: int) -> int:
    """As a shell tells it: 128 and the signal's number for a command that a signal ended."""
    sys.stdout.flush()
    return code if code >= 0 else 128 - code


def _duration(call: Call, name: str) -> int:
    word = call.options.text(name)
    if not word:
        return int(DEFAULT_S * 1e9)
    ns = parse_duration(word)
    if ns is None or ns <= 0:
        raise UsageError(f'-{name} "{word}" is not a duration such as 15s')
    return ns


def _seconds(word: str) -> float:
    ns = parse_duration(word)
    return DEFAULT_S if ns is None else ns / 1e9
