"""The real network: mutual TLS over TCP, or bare TCP on loopback for development.

A peer that shows no certificate of our CA, or speaks anything but TLS, is ended by the TLS layer before one byte
reaches a parser of ours, with one log line. Certificates change without a restart by `reload`.
Without TLS each side says in a first line who it claims to be; only loopback addresses are served and dialed then.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from nomadpy import logs
from nomadpy.errors import ConfigError, NomadError, PermissionDeniedError, UnreachableError
from nomadpy.pki.roles import Identity, common_name, parse_common_name
from nomadpy.pki.tls import (
    RPC_MINIMUM,
    TLSMaterial,
    peer_identity,
    rpc_client_context,
    rpc_server_context,
)
from nomadpy.rpc.network import Accept
from nomadpy.rpc.refusals import Refusals
from nomadpy.rpc.tasks import Tasks
from nomadpy.rpc.tls_stream import TransportStream

log = logs.get(__name__)

HANDSHAKE_TIMEOUT_S = 5.0
SHUTDOWN_TIMEOUT_S = 2.0
BACKLOG = 1024

# Handshakes under way, before anyone has proven anything: one host cannot take all places.
MAX_HANDSHAKES = 512
MAX_HANDSHAKES_PER_HOST = 128

_CLAIM = b"nomadpy without tls: "
_CLAIM_LIMIT = 128

Prove = Callable[[socket.socket, str], Coroutine[Any, Any, TransportStream | None]]
"""From an accepted socket and its address to an authenticated stream, or None when it was refused."""


class TLSNetwork:
    """Opens and accepts streams of this node (rpc.network.Network)."""

    def __init__(
        self,
        tls: TLSMaterial | None,
        *,
        role: str = "server",
        region: str = "global",
        minimum: str = RPC_MINIMUM,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        """tls None: bare TCP on loopback, and `role` and `region` are what we claim. With TLS the certificate says them.

        minimum: tls12 | tls13. Raises ConfigError when the material cannot be used.
        """
        self._minimum = minimum
        self._timeout_s = handshake_timeout_s
        self._refusals = Refusals()
        self._handshakes: dict[str, int] = {}
        self._tls = tls
        self._server_context: ssl.SSLContext | None = None
        self._client_context: ssl.SSLContext | None = None
        self.identity = Identity(role=role, region=region, name=common_name(role, region))
        if tls is not None:
            self.reload(tls)

    @property
    def refused(self) -> int:
        """How many connections were refused since the start."""
        return self._refusals.count

    def reload(self, tls: TLSMaterial | None = None) -> None:
        """Use other certificates for all connections from now on; those open stay.

        tls None reads the same files again. Raises ConfigError, and then the old ones stay in use.
        """
        if self._tls is None and tls is None:
            return
        material = tls if tls is not None else self._require_tls().read_again()
        server = rpc_server_context(material, self._minimum)
        client = rpc_client_context(material, self._minimum)
        self._tls, self._server_context, self._client_context = material, server, client
        self.identity = material.identity

    async def dial(self, address: str, *, role: str) -> TransportStream:
        """Connect to host:port and demand that the peer proves `role` and our region.

        Raises UnreachableError when there is no such peer, PermissionDeniedError when it is not who it must be.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._dial(address, role)
        except TimeoutError as cause:
            raise UnreachableError(
                f"{address}: no answer within {self._timeout_s:g} seconds"
            ) from cause
        except ssl.SSLCertVerificationError as cause:
            raise PermissionDeniedError(
                f"{address} does not prove to be {common_name(role, self.identity.region)}: {cause.verify_message}"
            ) from cause
        except OSError as cause:
            raise UnreachableError(f"{address}: {_reason(cause)}") from cause

    async def listen(self, address: str, accept: Accept) -> ListeningSocket:
        """Serve host:port (port 0: any); `accept` runs once for each authenticated stream.

        Raises ConfigError when the address cannot be bound, or is not loopback and there is no TLS.
        """
        host, port = split_address(address)
        try:
            found = await self._resolve(host, port, passive=True)
        except OSError as cause:
            raise ConfigError(f"cannot listen on {address}: {_reason(cause)}") from cause
        family, sockaddr = found[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(sockaddr)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as cause:
            sock.close()
            raise ConfigError(
                f"cannot listen on {address}: {_reason(cause)}; "
                "choose another address or port (ports.rpc, addresses.rpc)"
            ) from cause
        return ListeningSocket(sock, self._prove, accept)

    # -- outgoing ------------------------------------------------------------------------------------------

    async def _dial(self, address: str, role: str) -> TransportStream:
        host, port = split_address(address)
        secure = self._client_context is not None
        loop = asyncio.get_running_loop()
        failure: OSError = OSError(f"{host} has no address")
        for _family, sockaddr in await self._resolve(host, port, passive=False):
            stream = TransportStream(address, paused=secure)
            try:
                await loop.create_connection(lambda s=stream: s, *sockaddr[:2])  # type: ignore[misc]
                break
            except OSError as cause:
                failure = cause
        else:
            raise failure
        try:
            if self._client_context is not None:
                name = common_name(role, self.identity.region)
                await self._secure(stream, self._client_context, server_hostname=name)
            else:
                await self._introduce(stream)
            self._check_peer(stream.peer, role)
        except BaseException:
            stream.abort()
            raise
        return stream

    def _check_peer(self, peer: Identity, role: str | None) -> None:
        if peer.region != self.identity.region:
            raise PermissionDeniedError(
                f"the peer is {peer.name}, of another region than {self.identity.region}"
            )
        if role is not None and peer.role != role:
            raise PermissionDeniedError(f"the peer is {peer.name}, not a {role}")

    # -- incoming ------------------------------------------------------------------------------------------

    async def _prove(self, connection: socket.socket, address: str) -> TransportStream | None:
        """Find out who connects; None when it was refused, which has been logged."""
        stream = TransportStream(address, paused=self._server_context is not None)
        try:
            with self._handshake_place(address):
                async with asyncio.timeout(self._timeout_s):
                    await self._shake_hands(stream, connection)
            self._check_peer(stream.peer, None)
        except (OSError, NomadError) as error:
            stream.abort()
            self._refusals.report(address, _reason(error), asyncio.get_running_loop().time())
            return None
        except BaseException:
            stream.abort()
            raise
        finally:
            if not stream.connected:
                connection.close()
        return stream

    async def _shake_hands(self, stream: TransportStream, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        context = self._server_context
        await loop.connect_accepted_socket(lambda: stream, connection)
        if context is not None:
            await self._secure(stream, context)
        else:
            await self._introduce(stream)

    @contextlib.contextmanager
    def _handshake_place(self, address: str) -> Iterator[None]:
        host = address.rpartition(":")[0]
        here = self._handshakes.get(host, 0)
        if here >= MAX_HANDSHAKES_PER_HOST or sum(self._handshakes.values()) >= MAX_HANDSHAKES:
            raise PermissionDeniedError("too many handshakes at a time")
        self._handshakes[host] = here + 1
        try:
            yield
        finally:
            self._handshakes[host] -= 1
            if not self._handshakes[host]:
                del self._handshakes[host]

    # -- both ----------------------------------------------------------------------------------------------

    async def _secure(
        self,
        stream: TransportStream,
        context: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(
            stream.raw,
            stream,
            context,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
            ssl_handshake_timeout=self._timeout_s,
            ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        )
        if transport is None:
            raise ConnectionResetError("the connection ended during the handshake")
        stream.secured(transport)
        stream.peer = peer_identity(transport.get_extra_info("ssl_object"))

    async def _introduce(self, stream: TransportStream) -> None:
        """Without TLS: say who we are in one line, and hear who the other claims to be."""
        stream.write(_CLAIM + self.identity.name.encode() + b"\n")
        line = bytearray()
        while not line.endswith(b"\n"):
            byte = await stream.read(1)
            line += byte
            if not byte or len(line) > _CLAIM_LIMIT or not _CLAIM.startswith(line[: len(_CLAIM)]):
                raise PermissionDeniedError("the peer does not speak our protocol without TLS")
        stream.peer = parse_common_name(line[len(_CLAIM) : -1].decode("ascii", "replace"))

    async def _resolve(
        self, host: str, port: int, *, passive: bool
    ) -> list[tuple[int, tuple[str, int]]]:
        """Addresses of a host, as (family, sockaddr). Without TLS all of them must be loopback."""
        if (family := _literal_family(host)) is not None:
            addresses = [(family, (host, port))]
        else:
            loop = asyncio.get_running_loop()
            flags = socket.AI_PASSIVE if passive else 0
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
            addresses = [(int(row[0]), (str(row[4][0]), int(row[4][1]))) for row in found]
        if self._tls is None:
            for _family, (address, _port) in addresses:
                if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
                    raise ConfigError(
                        f"{host}:{port} is not a loopback address, and TLS is not configured: "
                        "give ca_file, cert_file and key_file in the tls block"
                    )
        return addresses

    def _require_tls(self) -> TLSMaterial:
        assert self._tls is not None
        return self._tls


class ListeningSocket:
    """An open port (rpc.network.Listening)."""

    def __init__(self, sock: socket.socket, prove: Prove, accept: Accept) -> None:
        self._socket = sock
        self._prove = prove
        self._serve = accept
        self._streams = Tasks()
        self._newcomers = Tasks()
        self.address = _address_text(sock.getsockname())
        self._newcomers.start(self._accept(), name=f"accept {self.address}")

    async def close(self) -> None:
        """Stop accepting, end unfinished handshakes; streams already open stay with their owners."""
        await self._newcomers.close()
        self._socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(self._socket)
            except OSError as error:
                # Out of file descriptors, mostly: those who wait in the backlog wait a little longer.
                log.error("accepting failed", address=self.address, error=_reason(error))
                await asyncio.sleep(0.5)
                continue
            address = _address_text(peer)
            self._newcomers.start(self._admit(connection, address), name=f"handshake {address}")

    async def _admit(self, connection: socket.socket, address: str) -> None:
        stream = await self._prove(connection, address)
        if stream is not None:
            self._streams.start(self._run(stream), name=f"serve {address}")

    async def _run(self, stream: TransportStream) -> None:
        try:
            await self._serve(stream)
        except Exception:
            log.exception(
                "serving a connection failed", address=stream.peer_address, peer=stream.peer.name
            )
            stream.abort()
        finally:
            stream.close()


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` as its parts. Raises ConfigError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{address!r} is not host:port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{address!r} is not host:port; write an IPv6 address as [host]:port")
    return host, int(port)


def _literal_family(host: str) -> int | None:
    """The address family when `host` is an IP address already; a name must be looked up, in a thread."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    return int(socket.AF_INET if version == 4 else socket.AF_INET6)


def _address_text(sockaddr: tuple[str, int]) -> str:
    host, port = sockaddr[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: BaseException) -> str:
    """What went wrong, in the words of OpenSSL or the operating system, without its file and line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, TimeoutError):
        return "the handshake was not finished in time"
    if isinstance(error, ConnectionResetError):
        return "connection ended by the peer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
