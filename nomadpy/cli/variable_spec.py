"""Variable specifications: JSON and HCL text to a variable, and a variable to JSON, HCL or a table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nomadpy.cli.errors import CliError
from nomadpy.cli.output import pairs, stamp

_FIELDS = {
    "namespace": "Namespace",
    "path": "Path",
    "create_index": "CreateIndex",
    "modify_index": "ModifyIndex",
    "create_time": "CreateTime",
    "modify_time": "ModifyTime",
}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

EXAMPLE = {
    "Path": "path/to/variable",
    "Items": {"key1": "value 1", "key2": "value 2"},
}


def read_spec(text: str, form: str, *, name: str) -> dict[str, Any]:
    """The variable that a specification describes, in wire case. form: hcl or json; name: for errors."""
    found = _from_json(text, name) if form == "json" else _from_hcl(text, name)
    items = found.get("Items")
    if items is not None and not (
        isinstance(items, dict) and all(isinstance(v, str) for v in items.values())
    ):
        raise CliError(f"{name}: Items must be a map whose values are text")
    return found


def form_of(path: str, default: str) -> str:
    """hcl or json, by a file's name."""
    suffix = Path(path).suffix.lower()
    return {".json": "json", ".hcl": "hcl"}.get(suffix, default)


def _from_json(text: str, name: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except ValueError as cause:
        raise CliError(f"{name} is not JSON: {cause}") from cause
    if not isinstance(raw, dict):
        raise CliError(f"{name} is not a JSON object")
    wanted = {wire.lower(): wire for wire in (*_FIELDS.values(), "Items", "Lock")}
    return {wanted[k.lower()]: v for k, v in raw.items() if k.lower() in wanted}


def _from_hcl(text: str, name: str) -> dict[str, Any]:
    from nomadpy.hcl.parser import parse
    from nomadpy.hcl.source import HclError
    from nomadpy.hcl.syntax import Attribute, Block, ObjectValue

    found: dict[str, Any] = {}
    try:
        document = parse(text, name=name)
    except HclError as error:
        raise CliError(error.message) from error
    for item in document.body.items:
        if isinstance(item, Block) and item.type == "items" and not item.labels:
            found["Items"] = {
                entry.name: _text(entry.value, name, entry.name)
                for entry in item.body.items
                if isinstance(entry, Attribute)
            }
        elif isinstance(item, Attribute) and item.name == "items":
            if not isinstance(item.value, ObjectValue):
                raise CliError(f"{name}: items must be a map")
            found["Items"] = {e.key: _text(e.value, name, e.key) for e in item.value.entries}
        elif isinstance(item, Attribute) and item.name in _FIELDS:
            found[_FIELDS[item.name]] = _scalar(item.value, name, item.name)
        elif not (isinstance(item, Block) and item.type == "lock"):
            what = item.name if isinstance(item, Attribute) else item.type
            raise CliError(
                f"{name}: a variable has no {what!r}; it has {', '.join(_FIELDS)}, items"
            )
    return found


def _text(value: Any, name: str, key: str) -> str:
    found = _scalar(value, name, key)
    if isinstance(found, bool):
        return "true" if found else "false"
    return str(found)


def _scalar(value: Any, name: str, key: str) -> Any:
    from nomadpy.hcl.syntax import Literal, Template

    if isinstance(value, Template):
        return value.verbatim
    if isinstance(value, Literal) and value.value is not None:
        return value.value
    raise CliError(f"{name}: {key} must be text")


def as_table(variable: dict[str, Any]) -> str:
    """A variable as it is shown on a terminal."""
    rows: list[tuple[str, object]] = [
        ("Namespace", variable["Namespace"]),
        ("Path", variable["Path"]),
        ("Create Time", stamp(variable["CreateTime"])),
    ]
    if variable["CreateTime"] != variable["ModifyTime"]:
        rows.append(("Modify Time", stamp(variable["ModifyTime"])))
    rows.append(("Check Index", variable["ModifyIndex"]))
    lock = variable.get("Lock")
    if lock:
        rows += [("Lock TTL", lock.get("TTL", "")), ("Lock Delay", lock.get("LockDelay", ""))]
    text = pairs(rows)
    items = variable.get("Items") or {}
    return f"{text}\n\nItems\n{pairs(sorted(items.items()))}" if items else text


def as_json(variable: dict[str, Any]) -> str:
    """A variable as the API has it, indented."""
    return json.dumps(variable, indent=2, ensure_ascii=False, sort_keys=True)


def as_hcl(variable: dict[str, Any]) -> str:
    """A variable as a specification that `var put` reads again."""
    known = {name: variable[wire] for name, wire in _FIELDS.items() if variable.get(wire)}
    width = max((len(name) for name in known), default=0)
    lines = [f"{name.ljust(width)} = {_quoted(value)}" for name, value in known.items()]
    items = variable.get("Items") or {}
    plain = all(_IDENTIFIER.fullmatch(key) for key in items)
    keys = {key: key if plain else _quoted(key) for key in sorted(items)}
    width = max(map(len, keys.values()), default=0)
    lines += ["", "items {" if plain else "items = {"]
    lines += [f"  {keys[key].ljust(width)} = {_quoted(items[key])}" for key in keys]
    return "\n".join([*lines, "}"])


def _quoted(value: Any) -> str:
    if not isinstance(value, str):
        return str(value)
    text = json.dumps(value, ensure_ascii=False)
    # What begins an interpolation in HCL is doubled to stand for itself.
    return text.replace("${", "$${").replace("%{", "%%{")
