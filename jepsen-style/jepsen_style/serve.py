"""The folder of runs on a web server of one's own machine: read only, one folder, a few requests at a time."""

from __future__ import annotations

import http.server
import threading
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, urlsplit

HOST = "127.0.0.1"
MOST_AT_ONCE = 16
IDLE_S = 10.0
CHUNK = 1 << 16
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".log": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
# Reports are data of clusters: nothing in them may run or fetch anything.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class _Handler(http.server.BaseHTTPRequestHandler):
    server_version = "jepsen-style"
    sys_version = ""
    timeout = IDLE_S
    protocol_version = "HTTP/1.0"
    server: Store

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        if not self.server.is_own(self.headers.get("Host", "")):
            # A page elsewhere that calls us by a name of its own shall not read what is here.
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
        file = self.server.find(self.path)
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with file.open("rb") as source:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", KINDS[file.suffix])
            self.send_header("Content-Length", str(file.stat().st_size))
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            while body and (chunk := source.read(CHUNK)):
                self.wfile.write(chunk)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads who read what."""


class Store(http.server.ThreadingHTTPServer):
    """Serves one folder. Requests beyond MOST_AT_ONCE are closed at once."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        """port: 0 for any. Raises OSError when it is taken."""
        self._folder = folder.resolve()
        self._free = threading.BoundedSemaphore(MOST_AT_ONCE)
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this machine's loopback, or there is none."""
        return host.rpartition(":")[0] in ("", HOST, "localhost") or host in (HOST, "localhost")

    def find(self, target: str) -> Path | None:
        """The file that a request's target names; None for whatever is not a kept file below the folder."""
        path = unquote(urlsplit(target).path)
        if "\0" in path or not path.startswith("/"):
            return None
        try:
            # Links are followed first, so that none leads out: `latest` is one that stays inside.
            file = (self._folder / path.lstrip("/")).resolve()
            if file.is_dir():
                file = (file / "index.html").resolve()
            inside = file.is_relative_to(self._folder) and file.is_file()
        except (OSError, RuntimeError, ValueError):
            return None
        return file if inside and file.suffix in KINDS else None

    def process_request(self, request: object, client_address: object) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)  # type: ignore[arg-type]
            return
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that went away in the middle."""
