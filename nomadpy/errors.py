"""Errors that say whether the thing happened, each with the HTTP status its wire answer has.

`DefiniteError`: it did not happen and never will, so a retry is safe. `IndefiniteError`: it may have
happened or may yet happen, so only an idempotent call may be retried. When unsure, it is indefinite.
An error crosses the rpc as (code, message, details) and is raised again as the same class on the other side.
"""

from __future__ import annotations

from typing import Any, ClassVar


class NomadError(Exception):
    """Root of all errors that a caller may see. `status` is the HTTP status of its answer."""

    code: ClassVar[str] = "internal"
    status: int = 500

    def __init__(self, message: str, *, status: int | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details
        if status is not None:
            self.status = status

    def to_wire(self) -> dict[str, Any]:
        """The form that crosses the rpc: code, message, status, details (msgpack values only)."""
        return {
            "code": self.code,
            "message": self.message,
            "status": self.status,
            "details": self.details,
        }

    @staticmethod
    def from_wire(raw: dict[str, Any]) -> NomadError:
        """Rebuild the error; an unknown code (a newer peer's) becomes IndefiniteError."""
        kind = _by_code().get(str(raw.get("code")), IndefiniteError)
        details = {str(k): v for k, v in (raw.get("details") or {}).items()}
        return kind(str(raw.get("message", "")), status=int(raw.get("status", 500)), **details)


class DefiniteError(NomadError):
    """It did not happen and never will."""

    code = "definite"


class IndefiniteError(NomadError):
    """It may have happened, or may yet."""

    code = "indefinite"


class InvalidRequestError(DefiniteError):
    """The request cannot be understood or breaks a rule; 400 unless the API promises another."""

    code = "invalid"
    status = 400


class ValidationError(DefiniteError):
    """A well-formed object breaks its rules; Nomad answers these with 500."""

    code = "validation"
    status = 500


class NotFoundError(DefiniteError):
    """The named thing does not exist."""

    code = "not-found"
    status = 404


class PermissionDeniedError(DefiniteError):
    """The caller's certificate or token does not allow it; never says which of them."""

    code = "denied"
    status = 403

    def __init__(self, message: str = "Permission denied", **details: Any) -> None:
        super().__init__(message, **details)


class ConflictError(DefiniteError):
    """A check-and-set or an enforced index did not hold."""

    code = "conflict"
    status = 409


class TooLargeError(DefiniteError):
    """A body, frame or value over its limit."""

    code = "too-large"
    status = 413


class NotLeaderError(DefiniteError):
    """This server does not lead, nothing entered the log; details: leader_address (may be "")."""

    code = "not-leader"


class NoLeaderError(DefiniteError):
    """No server leads at the moment, or none can be reached."""

    code = "no-leader"

    def __init__(self, message: str = "No cluster leader", **details: Any) -> None:
        super().__init__(message, **details)


class UnreachableError(DefiniteError):
    """No connection could be made, so the request was never sent."""

    code = "unreachable"


class ConnectionLostError(IndefiniteError):
    """The connection ended after the request was sent and before its answer."""

    code = "connection-lost"


class ProposalTimeoutError(IndefiniteError):
    """No answer from raft in time; the command may still commit."""

    code = "proposal-timeout"


class DeadlineError(IndefiniteError):
    """The other side did not answer in time."""

    code = "deadline"


class UnsupportedError(DefiniteError):
    """A method or feature that this node does not have."""

    code = "unsupported"
    status = 501


class ConfigError(DefiniteError):
    """The daemon's configuration cannot be used; the message names file and line where known."""

    code = "config"


class CorruptionError(DefiniteError):
    """Data on disk is damaged in a way that must not be repaired silently."""

    code = "corruption"


class LogFormatError(DefiniteError):
    """A log or snapshot of a format that this server does not read, or a write whose format not all servers read yet."""

    code = "log-format"
    status = 503


def _by_code() -> dict[str, type[NomadError]]:
    known: dict[str, type[NomadError]] = {}
    pending: list[type[NomadError]] = [NomadError]
    while pending:
        kind = pending.pop()
        known[kind.code] = kind
        pending.extend(kind.__subclasses__())
    return known
