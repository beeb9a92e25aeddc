"""The HTTP client of every command: http.client, with the connection kept open."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from nomadpy.cli.errors import ApiError, CliError
from nomadpy.cli.flags import Options

if TYPE_CHECKING:
    import ssl

DEFAULT_ADDRESS = "http://127.0.0.1:4646"
CONNECT_S = 10.0
ANSWER_S = 330.0  # the longest blocking query and its jitter

Query = dict[str, Any]


class Settings(NamedTuple):
    """Where the agent is, and who asks."""

    address: str = DEFAULT_ADDRESS
    region: str = ""
    namespace: str = ""
    token: str = ""
    ca_cert: str = ""
    ca_path: str = ""
    client_cert: str = ""
    client_key: str = ""
    server_name: str = ""
    skip_verify: bool = False


class Answered(NamedTuple):
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def nomad_index(self) -> int:
        """X-Nomad-Index, 0 without it."""
        text = self.headers.get("x-nomad-index", "0")
        return int(text) if text.isdecimal() else 0


def settings_from(options: Options) -> Settings:
    """Flags first, then the environment."""

    def choose(flag: str, variable: str, default: str = "") -> str:
        return options.text(flag) or os.environ.get(variable) or default

    skip = os.environ.get("NOMAD_SKIP_VERIFY", "").lower() in ("1", "t", "true")
    return Settings(
        address=choose("address", "NOMAD_ADDR", DEFAULT_ADDRESS).rstrip("/"),
        region=choose("region", "NOMAD_REGION"),
        namespace=choose("namespace", "NOMAD_NAMESPACE"),
        token=choose("token", "NOMAD_TOKEN"),
        ca_cert=choose("ca-cert", "NOMAD_CACERT"),
        ca_path=choose("ca-path", "NOMAD_CAPATH"),
        client_cert=choose("client-cert", "NOMAD_CLIENT_CERT"),
        client_key=choose("client-key", "NOMAD_CLIENT_KEY"),
        server_name=choose("tls-server-name", "NOMAD_TLS_SERVER_NAME"),
        skip_verify=skip or options.on("tls-skip-verify"),
    )


class Client:
    """Asks one agent. `doing` completes the sentence "Error ..." when it fails."""

    def __init__(self, settings: Settings, *, answer_s: float = ANSWER_S) -> None:
        """answer_s: how long an answer may be silent."""
        self.settings = settings
        self._answer_s = answer_s
        if "://" not in settings.address:
            self.settings = settings._replace(address=f"http://{settings.address}")
        self._parts = urlsplit(self.settings.address)
        if self._parts.scheme not in ("http", "https", "unix"):
            raise CliError(
                f"The address {settings.address} is not usable: it must begin with http://, https:// or unix://.\n"
                f"Correct -address or NOMAD_ADDR, e.g. NOMAD_ADDR={DEFAULT_ADDRESS}"
            )
        self._connection: http.client.HTTPConnection | None = None

    def get(
        self, path: str, query: Query | None = None, *, doing: str = "querying the agent"
    ) -> Any:
        """The JSON of a GET. Raises ApiError for any status but 2xx."""
        return self.ask("GET", path, query=query, doing=doing)[0]

    def get_indexed(
        self, path: str, query: Query | None = None, *, doing: str = "querying the agent"
    ) -> tuple[Any, int]:
        """The JSON of a GET and its index, for a blocking query that follows."""
        return self.ask("GET", path, query=query, doing=doing)

    def put(
        self, path: str, body: Any = None, query: Query | None = None, *, doing: str = "writing"
    ) -> Any:
        """The JSON of a PUT; None when the answer is empty."""
        return self.ask("PUT", path, body=body, query=query, doing=doing)[0]

    def delete(self, path: str, query: Query | None = None, *, doing: str = "deleting") -> Any:
        """The JSON of a DELETE; None when the answer is empty."""
        return self.ask("DELETE", path, query=query, doing=doing)[0]

    def ask(
        self, method: str, path: str, *, body: Any = None, query: Query | None = None, doing: str
    ) -> tuple[Any, int]:
        """The JSON of an answer and its index. Raises ApiError, or CliError when no answer came."""
        data = None if body is None else json.dumps(body, default=_base64).encode()
        answer = self.raw(method, path, data=data, query=query)
        if not 200 <= answer.status < 300:
            raise ApiError(answer.status, answer.body.decode("utf-8", "replace"), doing)
        if not answer.body.strip():
            return None, answer.nomad_index
        try:
            return json.loads(answer.body), answer.nomad_index
        except ValueError as cause:
            raise CliError(
                f"Error {doing}: what answers at {self.settings.address} is not a Nomad agent "
                f"(its answer is not JSON).\nCheck NOMAD_ADDR."
            ) from cause

    def raw(
        self,
        method: str,
        path: str,
        *,
        data: bytes | None = None,
        query: Query | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answered:
        """Any request, any status. Raises CliError when no answer came."""
        fresh = self._connection is None
        try:
            response = self._send(method, path, data, query, headers)
            return Answered(response.status, _lower(response), response.read())
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            self._connection = None
            # A kept connection may have been closed meanwhile; only what changes nothing is sent again.
            if not fresh and method == "GET":
                return self.raw(method, path, data=data, query=query, headers=headers)
            raise self._unreachable(error) from error
        except (OSError, http.client.HTTPException) as error:
            self._connection = None
            raise self._unreachable(error) from error

    @contextmanager
    def stream(
        self, path: str, query: Query | None = None, *, doing: str
    ) -> Iterator[Iterator[bytes]]:
        """The body of a GET as it comes, on a connection of its own."""
        connection = self._connect(timeout_s=None)
        try:
            connection.request("GET", self._target(path, query), headers=self._headers())
            response = connection.getresponse()
            if response.status != 200:
                raise ApiError(response.status, response.read().decode("utf-8", "replace"), doing)
            yield iter(lambda: response.read1(65536), b"")
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def open_socket(self) -> socket.socket:
        """A connected socket (TLS done), for the websocket."""
        connection = self._connect(timeout_s=CONNECT_S)
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        assert connection.sock is not None
        return connection.sock

    @property
    def host(self) -> str:
        """What the Host header says."""
        return "localhost" if self._parts.scheme == "unix" else self._parts.netloc

    def target(self, path: str, query: Query | None = None) -> str:
        """The request target, with namespace and region."""
        return self._target(path, query)

    def _send(
        self,
        method: str,
        path: str,
        data: bytes | None,
        query: Query | None,
        headers: dict[str, str] | None,
    ) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = self._connect(timeout_s=self._answer_s)
        more = {**self._headers(), **(headers or {})}
        self._connection.request(method, self._target(path, query), body=data, headers=more)
        return self._connection.getresponse()

    def _target(self, path: str, query: Query | None) -> str:
        words = {k: _word(v) for k, v in (query or {}).items() if v is not None}
        if self.settings.namespace:
            words.setdefault("namespace", self.settings.namespace)
        if self.settings.region:
            words.setdefault("region", self.settings.region)
        if not words:
            return path
        return f"{path}{'&' if '?' in path else '?'}{urlencode(words)}"

    def _headers(self) -> dict[str, str]:
        return {"X-Nomad-Token": self.settings.token} if self.settings.token else {}

    def _connect(self, *, timeout_s: float | None) -> http.client.HTTPConnection:
        if self._parts.scheme == "unix":
            return _UnixConnection(self._parts.path, timeout_s)
        try:
            host = self._parts.hostname or "127.0.0.1"
            port = self._parts.port or (443 if self._parts.scheme == "https" else 80)
        except ValueError as cause:
            raise CliError(
                f"The address {self.settings.address} is not usable: {cause}.\nCorrect NOMAD_ADDR."
            ) from cause
        if self._parts.scheme == "http":
            return _PlainConnection(host, port, timeout_s)
        return _TLSConnection(
            host, port, timeout_s, self._tls_context(), self.settings.server_name or host
        )

    def _tls_context(self) -> ssl.SSLContext:
        import ssl

        mine = self.settings
        try:
            context = ssl.create_default_context(
                cafile=mine.ca_cert or None, capath=mine.ca_path or None
            )
            if mine.client_cert:
                context.load_cert_chain(mine.client_cert, mine.client_key or None)
        except (OSError, ssl.SSLError) as cause:
            files = ", ".join(
                f for f in (mine.ca_cert, mine.ca_path, mine.client_cert, mine.client_key) if f
            )
            raise CliError(
                f"The TLS files cannot be used ({files}): {cause}.\n"
                "Check NOMAD_CACERT, NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY."
            ) from cause
        if mine.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _unreachable(self, error: Exception) -> CliError:
        address = self.settings.address
        name = type(error).__name__
        if isinstance(error, ConnectionRefusedError | FileNotFoundError):
            return CliError(
                f"No agent answers at {address}: connection refused.\n"
                "Start one with: nomadpy agent -dev, or set NOMAD_ADDR to where one runs."
            )
        if isinstance(error, socket.gaierror):
            return CliError(
                f"No agent answers at {address}: the host name cannot be resolved.\nCorrect NOMAD_ADDR."
            )
        if name == "SSLCertVerificationError":
            return CliError(
                f"The certificate of {address} is not trusted: {str(getattr(error, 'verify_message', error)).rstrip('.')}.\n"
                "Set NOMAD_CACERT to the cluster's CA (nomad-agent-ca.pem), and NOMAD_TLS_SERVER_NAME "
                "(e.g. server.global.nomad) when the address is not in the certificate."
            )
        if name.startswith("SSL"):
            return CliError(
                f"TLS with {address} failed: {error}.\n"
                "If the agent demands client certificates, set NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY; "
                "if it speaks plain HTTP, use http:// in NOMAD_ADDR."
            )
        if isinstance(error, TimeoutError):
            return CliError(
                f"The agent at {address} did not answer in time.\nIs the address right, and no firewall between?"
            )
        if isinstance(error, http.client.HTTPException | ConnectionResetError | BrokenPipeError):
            advice = "If the agent speaks TLS, use https:// in NOMAD_ADDR and set NOMAD_CACERT."
            if address.startswith("https:"):
                advice = "It may demand a client certificate: set NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY."
                if self.settings.client_cert:
                    advice = (
                        "Is the client certificate issued by the cluster's CA, and not expired?"
                    )
            return CliError(f"{address} closed the connection without an answer.\n{advice}")
        return CliError(f"The agent at {address} cannot be reached: {error}.\nCheck NOMAD_ADDR.")


class _PlainConnection(http.client.HTTPConnection):
    """Connects within CONNECT_S, then waits as long as the answer may take."""

    def __init__(self, host: str, port: int, timeout_s: float | None) -> None:
        super().__init__(host, port, timeout=CONNECT_S)
        self._answer_s = timeout_s

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._answer_s)


class _TLSConnection(_PlainConnection):
    """TLS whose expected name may differ from the host."""

    default_port = 443

    def __init__(
        self, host: str, port: int, timeout_s: float | None, context: ssl.SSLContext, name: str
    ) -> None:
        super().__init__(host, port, timeout_s)
        self._context = context
        self._name = name

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(CONNECT_S)
        self.sock = self._context.wrap_socket(self.sock, server_hostname=self._name)
        self.sock.settimeout(self._answer_s)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=CONNECT_S)
        self._path = path
        self._answer_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(CONNECT_S)
        self.sock.connect(self._path)
        self.sock.settimeout(self._answer_s)


def escaped(name: str) -> str:
    """A name for a path: nothing in it separates."""
    return quote(name, safe="")


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _lower(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _base64(value: object) -> str:
    """[]byte of a job (a dispatch payload) on its way into JSON."""
    import base64

    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} is not JSON")
