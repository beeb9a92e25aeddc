"""HTTP to one node, over a connection that is kept, with errors that say whether the request may have happened."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import urllib.parse
from typing import Any

import msgspec


class NotDoneError(Exception):
    """It did not happen: nothing was sent, or the answer refused it."""


class OutcomeUnknownError(Exception):
    """It may have happened, or may yet happen."""


class Answer(msgspec.Struct, frozen=True):
    """A status below 500. body: parsed JSON, or text. index: X-Nomad-Index, 0 for none."""

    status: int
    body: Any
    index: int


class NodeClient:
    """One client's connection to one node; not for more than one thread."""

    def __init__(self, name: str, address: str, tls: ssl.SSLContext | None, timeout_s: float = 5.0):
        """address: host:port; tls None is plain HTTP."""
        self.name = name
        self.address = address
        self._tls = tls
        self.timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """One request. Raises NotDoneError when nothing was sent, OutcomeUnknownError when no answer came or it was 5xx."""
        target = urllib.parse.quote(path) + (f"?{urllib.parse.urlencode(query)}" if query else "")
        connection = self._connect(timeout_s or self.timeout_s)
        try:
            payload = None if body is None else json.dumps(body).encode()
            connection.request(method, target, payload)
            response = connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise OutcomeUnknownError(f"{type(error).__name__} {error}".strip()) from error
        text = raw.decode("utf-8", "replace")
        if response.status >= 500:
            raise OutcomeUnknownError(f"{response.status} {text}")
        if response.status == 429:
            raise NotDoneError(f"429 {text}")
        try:
            parsed = json.loads(raw)
        except ValueError:
            parsed = text
        return Answer(response.status, parsed, int(response.headers.get("X-Nomad-Index") or 0))

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        kept = self._connection
        if kept is not None and kept.sock is not None:
            kept.sock.settimeout(timeout_s)
            return kept
        host, _, port = self.address.rpartition(":")
        connection: http.client.HTTPConnection
        if self._tls is None:
            connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
        else:
            connection = http.client.HTTPSConnection(
                host, int(port), timeout=timeout_s, context=self._tls
            )
        try:
            # TCP and TLS only: whatever goes wrong here, no request has left.
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise NotDoneError(f"not connected: {type(error).__name__} {error}".strip()) from error
        self._connection = connection
        return connection

    def close(self) -> None:
        """Drop the connection; the next request makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def tls_context(ca: str, cert: str, key: str) -> ssl.SSLContext:
    """A context that checks the node by `ca`, by address or name, and shows our certificate."""
    context = ssl.create_default_context(cafile=ca or None)
    if cert:
        context.load_cert_chain(cert, key)
    return context


def tls_from_environment() -> ssl.SSLContext:
    """The context that NOMAD_CACERT, NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY describe."""
    get = os.environ.get
    return tls_context(
        get("NOMAD_CACERT", ""), get("NOMAD_CLIENT_CERT", ""), get("NOMAD_CLIENT_KEY", "")
    )
