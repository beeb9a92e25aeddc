"""A request's query, headers and body to what calls carry: QueryOptions, WriteOptions, flags, structs.

Source: the observed texts of Nomad's 400 answers. Booleans, numbers and durations are read as Go reads them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from nomadpy.api.context import MEBIBYTE, Api
from nomadpy.errors import DefiniteError, InvalidRequestError, TooLargeError
from nomadpy.jobspec.decode import decode_body
from nomadpy.models.envelope import DEFAULT_NAMESPACE, QueryOptions, WriteOptions

T = TypeVar("T", bound=msgspec.Struct)

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_DURATION = re.compile(r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_MAX_UINT64 = (1 << 64) - 1
_MAX_INT32 = (1 << 31) - 1


def query_options(api: Api, request: web.Request) -> QueryOptions:
    """How the read is to be answered. Raises InvalidRequestError (400), DefiniteError for an unknown region (500)."""
    token = _token(request)
    if not request.rel_url.raw_query_string:
        # The common case: nothing but a path.
        return QueryOptions(token=token) if token else _PLAIN_READ
    query = request.query
    region = _region(api, query.get("region", ""))
    return QueryOptions(
        region=region,
        namespace=query.get("namespace") or DEFAULT_NAMESPACE,
        token=token,
        min_index=_index(query.get("index")),
        wait_ns=_wait(query.get("wait")),
        allow_stale=_switch(query.get("stale"), "stale"),
        prefix=query.get("prefix", ""),
        filter=query.get("filter", ""),
        per_page=_per_page(query.get("per_page")),
        next_token=query.get("next_token", ""),
        reverse=_switch(query.get("reverse"), "reverse"),
    )


def write_options(
    api: Api,
    request: web.Request,
    *,
    body_namespace: str = "",
    body_region: str = "",
) -> WriteOptions:
    """Where the write goes; the query wins over what the body says."""
    query = request.query
    region = _region(api, query.get("region") or body_region)
    return WriteOptions(
        region=region,
        namespace=query.get("namespace") or body_namespace or DEFAULT_NAMESPACE,
        token=_token(request),
        request_id=query.get("idempotency_token", ""),
    )


def token_of(request: web.Request) -> str:
    """X-Nomad-Token, else the bearer token of Authorization, else ""."""
    return _token(request)


def flags(
    request: web.Request, *, switches: Iterable[str] = (), words: Iterable[str] = ()
) -> dict[str, str]:
    """The method's own query parameters that are present: switches as "true" or "false", words as they are."""
    if not request.rel_url.raw_query_string:
        return {}
    query = request.query
    found: dict[str, str] = {}
    for name in switches:
        if name in query:
            found[name] = "true" if go_bool(query[name], name) else "false"
    for name in words:
        if name in query:
            found[name] = query[name]
    return found


def go_bool(text: str, name: str, *, empty: bool = False) -> bool:
    """A boolean as Go's strconv reads it. Raises InvalidRequestError naming the parameter."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if text == "":
        return empty
    raise InvalidRequestError(
        f'Failed to parse value of "{name}" ("{text}") as a bool: strconv.ParseBool: parsing "{text}": invalid syntax'
    )


def go_int(text: str, name: str) -> int:
    """A signed 64-bit number. Raises InvalidRequestError naming the parameter."""
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text) or not -(1 << 63) <= int(text) < 1 << 63:
        raise InvalidRequestError(
            f'error parsing {name}: strconv.ParseInt: parsing "{text}": invalid syntax'
        )
    return int(text)


def go_duration(text: str) -> int | None:
    """Nanoseconds of a Go duration such as 1m30s; None when it is not one."""
    if text in ("0", "+0", "-0"):
        return 0
    if len(text) > 64 or not _DURATION.fullmatch(text):
        return None
    total = sum(float(number) * _NS[unit] for number, unit in _DURATION_PART.findall(text))
    if total >= 1 << 63:
        return None
    return int(-total if text.startswith("-") else total)


async def body_bytes(api: Api, request: web.Request) -> bytes:
    """The whole body. Raises TooLargeError above the limit, InvalidRequestError when it does not arrive in time."""
    limit = api.config.max_body_bytes
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    if not request.body_exists:
        return b""
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(api.config.body_timeout_s):
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
    except TimeoutError as cause:
        raise InvalidRequestError(
            f"the request body did not arrive within {api.config.body_timeout_s:g} seconds",
            status=408,
        ) from cause
    except (web.RequestPayloadError, ConnectionError) as cause:
        raise InvalidRequestError(f"the request body could not be read: {cause}") from cause
    return b"".join(chunks)


async def body_of(api: Api, request: web.Request, kind: type[T], *, optional: bool = False) -> T:
    """The body as a struct, by Go's rules (keys in any case, unknown ones ignored, null is the default).

    Raises InvalidRequestError with Nomad's text; `optional` takes an empty body for the struct's defaults.
    """
    raw = await raw_body(api, request, kind, optional=optional)
    return as_struct(raw, kind)


async def raw_body(
    api: Api, request: web.Request, kind: type[msgspec.Struct], *, optional: bool = False
) -> dict[str, Any]:
    """The body as a dict in wire case with `kind`'s keys only."""
    data = await body_bytes(api, request)
    if not data.strip():
        if optional:
            return {}
        raise InvalidRequestError("Request body is empty")
    try:
        if len(data) > MEBIBYTE:
            # Decoding tens of megabytes would hold up every other request.
            return await asyncio.to_thread(decode_body, data, kind)
        return decode_body(data, kind)
    except RecursionError as cause:
        raise InvalidRequestError("the JSON of the request body is nested too deeply") from cause


def as_struct(raw: dict[str, Any], kind: type[T]) -> T:
    """A decoded dict as its struct. Raises InvalidRequestError naming the field."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as cause:
        raise InvalidRequestError(f"json: {cause}") from cause


_PLAIN_READ = QueryOptions()


def _token(request: web.Request) -> str:
    headers = request.headers
    token = headers.get("X-Nomad-Token")
    if token:
        return token.strip()
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


def _region(api: Api, region: str) -> str:
    if region and region != api.local.region:
        raise DefiniteError("No path to region")
    return region


def _index(text: str | None) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) > _MAX_UINT64:
        raise InvalidRequestError("Invalid index")
    return int(text)


def _wait(text: str | None) -> int:
    if not text:
        return 0
    wait = go_duration(text)
    if wait is None:
        raise InvalidRequestError("Invalid wait time")
    return max(wait, 0)


def _per_page(text: str | None) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"[+-]?[0-9]{1,10}", text) or abs(int(text)) > _MAX_INT32:
        raise InvalidRequestError("Expect a number for `per_page` query string parameter")
    return max(int(text), 0)


def _switch(text: str | None, name: str) -> bool:
    if text is None:
        return False
    if text == "" or text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise InvalidRequestError(f"Expect `true` or `false` for `{name}` query string parameter")


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(
        f"the request body is larger than the limit of {limit} bytes; a job source that large belongs in an artifact"
    )
