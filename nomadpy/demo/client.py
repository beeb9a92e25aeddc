"""A small HTTP client for the cluster's API over mutual TLS; standard library only."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec


class Reply(msgspec.Struct, frozen=True):
    """An answer. body: parsed JSON, or text when it is not JSON."""

    status: int
    body: Any
    index: int


class ApiError(Exception):
    """The answer was not a 2xx, or no answer came."""


class ApiClient:
    """Calls one node's API; a connection for each call, so that a killed node is noticed at once."""

    def __init__(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        """address: host:port; tls: a client context with our certificate, None for plain HTTP."""
        self.address = address
        self._tls = tls

    @classmethod
    def with_certificates(cls, address: str, ca: Path, cert: Path, key: Path) -> ApiClient:
        """A client that proves itself and checks the server's certificate."""
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(str(cert), str(key))
        return cls(address, context)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout_s: float = 15.0,
        query: dict[str, str] | None = None,
    ) -> Reply:
        """One request. Raises ApiError when no answer comes."""
        host, _, port = self.address.rpartition(":")
        connection: http.client.HTTPConnection
        if self._tls is None:
            connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
        else:
            connection = http.client.HTTPSConnection(
                host, int(port), timeout=timeout_s, context=self._tls
            )
        target = path + ("?" + urllib.parse.urlencode(query) if query else "")
        try:
            connection.request(
                method, target, body=None if body is None else json.dumps(body).encode()
            )
            response = connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"{method} {target} at {self.address}: {error}") from error
        finally:
            connection.close()
        try:
            parsed = json.loads(raw)
        except ValueError:
            parsed = raw.decode("utf-8", "replace")
        return Reply(response.status, parsed, int(response.headers.get("X-Nomad-Index") or 0))

    def get(self, path: str, /, **query: str) -> Any:
        """The body of a GET. Raises ApiError for anything but 2xx."""
        return self._good("GET", path, None, query)

    def put(self, path: str, body: Any = None, /, **query: str) -> Any:
        """The body of a PUT's answer. Raises ApiError for anything but 2xx."""
        return self._good("PUT", path, body, query)

    def delete(self, path: str, /, **query: str) -> Any:
        """The body of a DELETE's answer. Raises ApiError for anything but 2xx."""
        return self._good("DELETE", path, None, query)

    def _good(self, method: str, path: str, body: Any, query: dict[str, str]) -> Any:
        reply = self.send(method, path, body, query=query)
        if not 200 <= reply.status < 300:
            raise ApiError(f"{method} {path} at {self.address}: {reply.status} {reply.body}")
        return reply.body


def until(look: Callable[[], Any], *, seconds: float, what: str, every_s: float = 0.05) -> Any:
    """Call `look` until it returns something true, and return that. Raises TimeoutError that says what was waited for."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            found = look()
            if found:
                return found
            last = found
        except ApiError as error:
            last = error
        time.sleep(every_s)
    raise TimeoutError(f"waited {seconds:g} s for {what}; last seen: {last!r}")
