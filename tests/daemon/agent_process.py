"""One `nomadpy agent` in a process of its own, for tests: started, waited for, asked, ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE_S = 30.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class AgentProcess:
    """An agent with a configuration file; temporary directories lie below `folder`. Leaving the block kills it."""

    def __init__(self, folder: Path, config: str = "", *flags: str) -> None:
        self.http, self.rpc = free_port(), free_port()
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        file = folder / "agent.hcl"
        file.write_text(f"ports {{\n  http = {self.http}\n  rpc = {self.rpc}\n}}\n{config}")
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nomadpy", "agent", *flags, "-config", str(file)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self.temporary)},
            )

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def output(self) -> str:
        """All it has said."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> Any:
        """The JSON (or text) of an answer over plain HTTP; None while there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=5) as reply:
                body = reply.read()
                return json.loads(body) if "json" in reply.headers["Content-Type"] else body
        except (urllib.error.URLError, OSError):
            return None

    def put(self, path: str, body: Any) -> Any:
        """Send JSON; the JSON of the answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http}{path}", json.dumps(body).encode(), method="PUT"
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.loads(reply.read())

    def gauges(self) -> dict[str, float]:
        """Every gauge of /v1/metrics by its name."""
        return {row["Name"]: row["Value"] for row in self.get("/v1/metrics")["Gauges"]}

    def until(self, happened: Callable[[], Any], what: str) -> Any:
        """What `happened` returns as soon as it is true; fails when the agent ends or takes too long."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = happened()
            if found:
                return found
            assert self.process.poll() is None, f"the agent ended before {what}:\n{self.output}"
            time.sleep(0.05)
        raise AssertionError(f"not in {PATIENCE_S:g} s: {what}\n{self.output}")

    def until_ready(self) -> None:
        """A leader and a ready node."""
        self.until(
            lambda: any(n["Status"] == "ready" for n in self.get("/v1/nodes") or ()), "a ready node"
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def exit_code(self) -> int:
        """Wait for the end."""
        return self.process.wait(PATIENCE_S)
