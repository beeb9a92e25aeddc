"""A websocket client, small: text frames both ways over a connected socket (RFC 6455)."""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
from typing import NamedTuple

from nomadpy.cli.errors import ApiError, CliError
from nomadpy.entropy import SystemEntropy

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MAX_FRAME = 4 * 1024 * 1024
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Closed(NamedTuple):
    """How the other side ended. code 1000 is well, 1006 without a close frame."""

    code: int
    reason: str


class WebSocket:
    """Blocking; `pending` says whether a frame may be read without waiting on the socket."""

    def __init__(self, connection: socket.socket, host: str, target: str, token: str) -> None:
        """Upgrade. Raises ApiError when the server answers otherwise."""
        self._entropy = SystemEntropy()
        self._socket = connection
        self._buffer = bytearray()
        key = base64.b64encode(self._entropy.token_bytes(16)).decode()
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            *([f"X-Nomad-Token: {token}"] if token else []),
        ]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self._check_answer(key)
        connection.settimeout(None)

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """A frame, or bytes that TLS has decrypted already, wait."""
        tls = getattr(self._socket, "pending", None)
        return self._whole_frame() is not None or bool(tls is not None and tls())

    def send(self, text: str) -> None:
        """Send a text frame."""
        self._send(TEXT, text.encode())

    def receive(self) -> str | Closed:
        """The next text, or how it ended. Answers pings itself."""
        parts: list[bytes] = []
        while True:
            frame = self._frame()
            if frame is None:
                return Closed(1006, "the connection was lost")
            final, kind, data = frame
            if kind == PING:
                self._send(PONG, data)
            elif kind == CLOSE:
                self._send(CLOSE, data[:2])
                code = struct.unpack("!H", data[:2])[0] if len(data) >= 2 else 1005
                return Closed(code, data[2:].decode("utf-8", "replace"))
            elif kind in (0, TEXT, BINARY):
                parts.append(data)
                if final:
                    return b"".join(parts).decode("utf-8", "replace")

    def close(self) -> None:
        """Say goodbye, as far as the other side still listens."""
        try:
            self._send(CLOSE, struct.pack("!H", 1000))
        except OSError:
            return
        finally:
            self._socket.close()

    def _check_answer(self, key: str) -> None:
        while b"\r\n\r\n" not in self._buffer:
            data = self._socket.recv(65536)
            if not data or len(self._buffer) > 65536:
                raise CliError(
                    "Error executing: the agent closed the connection during the upgrade."
                )
            self._buffer += data
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer = bytearray(rest)
        status, *headers = head.decode("latin-1").split("\r\n")
        found = {n.strip().lower(): v.strip() for n, _, v in (h.partition(":") for h in headers)}
        code = (
            int(status.split(" ")[1])
            if len(status.split(" ")) > 1 and status.split(" ")[1].isdecimal()
            else 0
        )
        if code != 101:
            length = int(found.get("content-length", "0") or 0)
            while len(self._buffer) < min(length, 65536):
                data = self._socket.recv(65536)
                if not data:
                    break
                self._buffer += data
            raise ApiError(code, self._buffer.decode("utf-8", "replace"), "executing")
        digest = hashlib.sha1(key.encode() + _MAGIC, usedforsecurity=False).digest()
        if found.get("sec-websocket-accept") != base64.b64encode(digest).decode():
            raise CliError("Error executing: what answers is not a websocket. Check NOMAD_ADDR.")

    def _send(self, kind: int, data: bytes) -> None:
        length = len(data)
        if length < 126:
            head = struct.pack("!BB", 0x80 | kind, 0x80 | length)
        elif length < 65536:
            head = struct.pack("!BBH", 0x80 | kind, 0x80 | 126, length)
        else:
            head = struct.pack("!BBQ", 0x80 | kind, 0x80 | 127, length)
        mask = self._entropy.token_bytes(4)
        masked = bytes(byte ^ mask[i & 3] for i, byte in enumerate(data))
        self._socket.sendall(head + mask + masked)

    def _frame(self) -> tuple[bool, int, bytes] | None:
        while True:
            found = self._whole_frame()
            if found is not None:
                start, end = found
                final, kind = bool(self._buffer[0] & 0x80), self._buffer[0] & 0x0F
                data = bytes(self._buffer[start:end])
                del self._buffer[:end]
                return final, kind, data
            try:
                data = self._socket.recv(65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self._buffer += data

    def _whole_frame(self) -> tuple[int, int] | None:
        """Where the data of the first frame begins and ends, once all of it is here. Servers do not mask."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, start = buffer[1] & 0x7F, 2
        if length == 126:
            if len(buffer) < 4:
                return None
            length, start = struct.unpack_from("!H", buffer, 2)[0], 4
        elif length == 127:
            if len(buffer) < 10:
                return None
            length, start = struct.unpack_from("!Q", buffer, 2)[0], 10
        if length > MAX_FRAME:
            raise CliError("Error executing: the agent sent a frame that is too large.")
        return (start, start + length) if len(buffer) >= start + length else None
