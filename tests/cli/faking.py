"""An agent on loopback that answers from a table, and the command line run against it in this process."""

from __future__ import annotations

import http.server
import json
import pathlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from nomadpy.cli.main import main

REFERENCE = pathlib.Path(__file__).parent.parent / "wire" / "reference"

Reply = Any  # JSON, or (status, text), or a callable of (query, body) that returns either


def recorded(scenario: str, name: str) -> Any:
    """The body of a recorded exchange."""
    for line in (REFERENCE / f"{scenario}.jsonl").read_text(encoding="utf-8").splitlines():
        exchange = json.loads(line)
        if exchange["name"] == name:
            return exchange["response"]["body"]
    raise LookupError(f"{scenario}/{name}")


class FakeAgent:
    """routes: "GET /v1/jobs" to a reply. Keeps what it was asked."""

    def __init__(self, routes: dict[str, Reply]) -> None:
        self.routes = routes
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.tokens: list[str] = []
        agent = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                parts = urlsplit(self.path)
                query = dict(parse_qsl(parts.query, keep_blank_values=True))
                length = int(self.headers.get("Content-Length", 0))
                raw = self.rfile.read(length)
                body = json.loads(raw) if raw else None
                name = f"{self.command} {parts.path}"
                agent.asked.append((name, query, body))
                agent.tokens.append(self.headers.get("X-Nomad-Token", ""))
                reply = agent.routes.get(name, (404, ""))
                if callable(reply):
                    reply = reply(query, body)
                if isinstance(reply, tuple):
                    status, text = reply
                else:
                    status, text = 200, json.dumps(reply)
                data = text if isinstance(text, bytes) else text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("X-Nomad-Index", "7")
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """A command that hangs up early is its right; the traceback would look like the command's own."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def of(self, name: str) -> list[tuple[dict[str, str], Any]]:
        """Query and body of every request for a route."""
        return [(query, body) for route, query, body in self.asked if route == name]


@contextmanager
def answering(routes: dict[str, Reply], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    """Serve, with NOMAD_ADDR pointing there."""
    agent = FakeAgent(routes)
    thread = threading.Thread(target=agent.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("NOMAD_ADDR", agent.address)
    try:
        yield agent
    finally:
        agent.server.shutdown()
        agent.server.server_close()
        thread.join()


def run(capsys: pytest.CaptureFixture[str], *line: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command."""
    capsys.readouterr()
    status = main(line)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return status, out, err


def sequence(*replies: Reply) -> Callable[[Any, Any], Reply]:
    """One reply after the other; the last one stays."""
    left = list(replies)
    return lambda query, body: left.pop(0) if len(left) > 1 else left[0]
