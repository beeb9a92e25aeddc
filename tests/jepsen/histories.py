"""Histories written by hand, a line an operation: (process, from, to, f, ...). Times are in milliseconds."""

from __future__ import annotations

from typing import Any

from jepsen_style.history import NEMESIS, History, Op

MS = 1_000_000


def call(
    process: int, start: int, end: int, f: str, outcome: str = "ok", **fields: Any
) -> list[Op]:
    """An invocation and its completion. got: the completion's value, where it is not the invocation's."""
    got = fields.pop("got", fields.get("value"))
    version = fields.pop("version", None)
    phase = {"phase": fields.pop("phase", "safety"), "node": fields.pop("node", "n1")}
    key = {"key": fields.get("key", "")}
    return [
        Op(time=start * MS, type="invoke", process=process, f=f, **fields, **phase),
        Op(
            time=end * MS,
            type=outcome,
            process=process,
            f=f,
            value=got,
            version=version,
            **key,
            **phase,
        ),  # type: ignore[arg-type]
    ]


def write(process: int, start: int, end: int, cas: int, version: int | None, value: str, **more: Any) -> list[Op]:  # fmt: skip
    """A check-and-set of the key x."""
    return call(process, start, end, "cas", key="x", value=value, cas=cas, version=version, **more)


def refused(process: int, start: int, end: int, cas: int, there: int, value: str) -> list[Op]:
    """A check-and-set that met version `there` with this value."""
    return call(process, start, end, "cas", "fail", key="x", value=f"new-{start}", cas=cas, version=there, got=value)  # fmt: skip


def read(process: int, start: int, end: int, version: int, value: str | None, **more: Any) -> list[Op]:  # fmt: skip
    """A read of the key x."""
    return call(process, start, end, "read", key="x", version=version, got=value, **more)


def event(at: int, f: str, key: str = "", node: str = "") -> list[Op]:
    """Something the nemesis did."""
    return [Op(time=at * MS, type="info", process=NEMESIS, f=f, key=key, node=node)]


def history(*parts: list[Op]) -> History:
    """All together."""
    return History(op for part in parts for op in part)
