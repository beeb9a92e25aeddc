"""What every call carries besides its own request, and the answer that reads and writes share."""

from __future__ import annotations

import msgspec

DEFAULT_NAMESPACE = "default"
ALL_NAMESPACES = "*"


class QueryOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a read is to be answered.

    min_index: block until the result's index is higher; 0 answers at once. wait_ns: how long to block, 0 = default.
    allow_stale: any server may answer from its own state. prefix, filter, per_page, next_token, reverse: of lists.
    """

    region: str = ""
    namespace: str = DEFAULT_NAMESPACE
    token: str = ""
    min_index: int = 0
    wait_ns: int = 0
    allow_stale: bool = False
    prefix: str = ""
    filter: str = ""
    per_page: int = 0
    next_token: str = ""
    reverse: bool = False


class WriteOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a write goes. request_id: names the write, so that a retry is not a second write."""

    region: str = ""
    namespace: str = DEFAULT_NAMESPACE
    token: str = ""
    request_id: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An answer whose body is ready for the wire.

    body: JSON bytes; b"" is an empty body. index: 0 sets no header. last_contact_ms: -1 leaves the
    read headers (LastContact, KnownLeader) out, as writes do. next_token: of a list's next page.
    """

    body: bytes = b""
    index: int = 0
    last_contact_ms: int = -1
    known_leader: bool = True
    next_token: str = ""
