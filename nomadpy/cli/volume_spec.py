"""Volume specifications of host volumes: HCL or JSON text to what the API takes, and the examples of `volume init`."""

from __future__ import annotations

import json
import re
from typing import Any

from nomadpy.cli.errors import CliError

Spec = dict[str, Any]

_WORDS = {
    "id": "ID",
    "name": "Name",
    "namespace": "Namespace",
    "plugin_id": "PluginID",
    "node_id": "NodeID",
    "node_pool": "NodePool",
    "host_path": "HostPath",
}
_SIZES = {
    "capacity": "CapacityBytes",
    "capacity_min": "RequestedCapacityMinBytes",
    "capacity_max": "RequestedCapacityMaxBytes",
}
_CAPABILITY = {"access_mode": "AccessMode", "attachment_mode": "AttachmentMode"}
_CONSTRAINT = {"attribute": "LTarget", "value": "RTarget", "operator": "Operand"}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}

EXAMPLE_HCL = """# A directory on a node, made by the plugin mkdir that every agent has.
name      = "example"
namespace = "default"
type      = "host"
plugin_id = "mkdir"

# One node, or a pool and constraints to choose it by. Without them any node that has the plugin will do.
# node_id   = "00000000-0000-0000-0000-000000000000"
# node_pool = "default"

# What the plugin is asked for; mkdir sets no bounds.
# capacity_min = "1GiB"
# capacity_max = "2GiB"

# What jobs may do with the volume: at least one block.
# access_mode: single-node-reader-only, single-node-writer, single-node-single-writer, single-node-multi-writer
capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}

constraint {
  attribute = "${attr.kernel.name}"
  value     = "linux"
}

# Handed to the plugin as they are.
parameters {
  mode = "0700"
}
"""

EXAMPLE_JSON: Spec = {
    "name": "example",
    "namespace": "default",
    "type": "host",
    "plugin_id": "mkdir",
    "capability": [{"access_mode": "single-node-writer", "attachment_mode": "file-system"}],
    "constraint": [{"attribute": "${attr.kernel.name}", "value": "linux"}],
    "parameters": {"mode": "0700"},
}


def read_spec(text: str, *, name: str) -> Spec:
    """The volume that a specification describes, in wire case. name: for errors. JSON begins with a brace.

    Raises CliError that says where it is wrong.
    """
    raw = _json(text, name) if text.lstrip().startswith("{") else _hcl(text, name)
    if "Volume" in raw and isinstance(raw["Volume"], dict):
        # The body of a request, as the API takes it.
        return dict(raw["Volume"])
    kind = raw.pop("type", "host")
    if kind != "host":
        raise CliError(f'{name}: type "{kind}" is not supported: only host volumes are')
    found: Spec = {}
    for key, value in raw.items():
        if key in _WORDS:
            found[_WORDS[key]] = _text(value, name, key)
        elif key in _SIZES:
            found[_SIZES[key]] = _bytes(value, name, key)
        elif key == "parameters":
            found["Parameters"] = {
                k: _text(v, name, f"parameters.{k}") for k, v in _map(value, name, key).items()
            }
        elif key == "capability":
            found["RequestedCapabilities"] = [
                _named(one, _CAPABILITY, name, key) for one in _blocks(value, name, key)
            ]
        elif key == "constraint":
            found["Constraints"] = [_constraint(one, name) for one in _blocks(value, name, key)]
        else:
            from nomadpy.hcl.source import did_you_mean

            known = (*_WORDS, *_SIZES, "type", "capability", "constraint", "parameters")
            hint = did_you_mean(key, known) or f"It has {', '.join(known)}."
            raise CliError(f"{name}: a host volume has no {key!r}. {hint.strip()}")
    return found


def _constraint(block: Any, name: str) -> Spec:
    made = _named(block, _CONSTRAINT, name, "constraint")
    return {"Operand": "=", **made}


def _named(block: Any, fields: dict[str, str], name: str, what: str) -> Spec:
    found = {}
    for key, value in _map(block, name, what).items():
        if key not in fields:
            raise CliError(f"{name}: {what} has no {key!r}; it has {', '.join(fields)}")
        found[fields[key]] = _text(value, name, f"{what}.{key}")
    return found


def _blocks(value: Any, name: str, what: str) -> list[Any]:
    if isinstance(value, list):
        return value
    return [_map(value, name, what)]


def _map(value: Any, name: str, what: str) -> Spec:
    if not isinstance(value, dict):
        raise CliError(f"{name}: {what} must be a block")
    return value


def _text(value: Any, name: str, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise CliError(f"{name}: {key} must be text")


def _bytes(value: Any, name: str, key: str) -> int:
    """A number of bytes, or text with a unit: 1GiB is 2**30, 1GB and 1G are 10**9."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise CliError(f'{name}: {key} must be a size such as "10GiB", not {value!r}')
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWER[unit.lower()])


def _json(text: str, name: str) -> Spec:
    try:
        raw = json.loads(text)
    except ValueError as cause:
        raise CliError(f"{name} is not JSON: {cause}") from cause
    except RecursionError as cause:
        raise CliError(f"{name} is nested too deeply") from cause
    if not isinstance(raw, dict):
        raise CliError(f"{name} is not a JSON object")
    return raw


def _hcl(text: str, name: str) -> Spec:
    from nomadpy.hcl.parser import parse
    from nomadpy.hcl.source import HclError
    from nomadpy.hcl.syntax import Block

    try:
        document = parse(text, name=name)
    except HclError as error:
        raise CliError(error.message) from error
    found: Spec = {}
    for item in document.body.items:
        if isinstance(item, Block):
            made = {
                one.name: _value(one.value) for one in item.body.items if not isinstance(one, Block)
            }
            if item.type == "parameters":
                found["parameters"] = made
            else:
                found.setdefault(item.type, []).append(made)
        else:
            found[item.name] = _value(item.value)
    return found


def _value(value: Any) -> Any:
    from nomadpy.hcl.syntax import ListValue, Literal, ObjectValue, Template

    if isinstance(value, Template):
        return value.verbatim
    if isinstance(value, Literal):
        return value.value
    if isinstance(value, ListValue):
        return [_value(one) for one in value.items]
    if isinstance(value, ObjectValue):
        return {one.key: _value(one.value) for one in value.entries}
    return None
