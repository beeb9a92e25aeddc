"""NomadError to HTTP: the status, the bare text, and the index headers a server put into the error's details."""

from __future__ import annotations

from aiohttp import web

from nomadpy.errors import NomadError

TEXT = "text/plain; charset=utf-8"


def error_response(error: NomadError) -> web.Response:
    """The answer an error is on the wire: its message as text, without a newline.

    details: `index`, `last_contact_ms` and `known_leader`, when a server put them there, become the headers that
    the answer would have had, so that a blocking query on something absent can go on.
    """
    return text_response(error.status, error.message, index_headers(error))


def text_response(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    """A bare text; an empty one has no Content-Type."""
    mine = {"Vary": "Accept-Encoding", **(headers or {})}
    if text:
        mine["Content-Type"] = TEXT
    return web.Response(status=status, body=text.encode("utf-8", "replace"), headers=mine)


def index_headers(error: NomadError) -> dict[str, str]:
    """The read headers of an error's details; none when a server gave no index."""
    index = error.details.get("index")
    if not isinstance(index, int):
        return {}
    headers = {"X-Nomad-Index": str(index)}
    contact = error.details.get("last_contact_ms", 0)
    if isinstance(contact, int) and contact >= 0:
        headers["X-Nomad-Lastcontact"] = str(contact)
        known = error.details.get("known_leader", True)
        headers["X-Nomad-Knownleader"] = "true" if known else "false"
    return headers
