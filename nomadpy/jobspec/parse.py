"""The text of a job to a job in wire case: the API's JSON in both its shapes, and the same in YAML."""

from __future__ import annotations

from typing import Any

import yaml

from nomadpy.errors import InvalidRequestError
from nomadpy.jobspec.decode import MAX_DEPTH, decode, load_json
from nomadpy.models.job import Job

MAX_ALIASED_NODES = 100_000
"""YAML aliases may repeat a part; this bounds what they can grow to."""


def parse(text: str, *, name: str = "job") -> dict[str, Any]:
    """Return the job that `text` holds, decoded: `{"Job": {...}}` or the job itself, JSON or YAML.

    name: what errors call the text (a file's name; `.json` and `.yaml` decide how it is read, else its first character does).
    Raises InvalidRequestError (400) that says what is wrong and where.
    """
    if not text.strip():
        raise InvalidRequestError(f"{name}: the job is empty")
    lowered = name.lower()
    if lowered.endswith((".yaml", ".yml")):
        document = _load_yaml(text, name)
    elif lowered.endswith(".json") or text.lstrip().startswith("{"):
        document = load_json(text.encode())
    else:
        document = _load_yaml(text, name)
    return decode(unwrap(document, name), Job, path="Job")


def unwrap(document: Any, name: str = "job") -> dict[str, Any]:
    """Return the job inside a document of either shape. Raises InvalidRequestError."""
    if not isinstance(document, dict):
        raise InvalidRequestError(f"{name}: a job is a map of its fields, not {_kind(document)}")
    wrapped = [key for key in document if isinstance(key, str) and key.lower() == "job"]
    inner = document[wrapped[0]] if wrapped else document
    if not isinstance(inner, dict):
        raise InvalidRequestError(f'{name}: "Job" must hold a map of fields, not {_kind(inner)}')
    return inner


class _Loader(yaml.SafeLoader):
    """Safe YAML whose timestamps stay text, as job fields have none."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _load_yaml(text: str, name: str) -> Any:
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as cause:
        mark = cause.problem_mark
        place = f":{mark.line + 1},{mark.column + 1}" if mark else ""
        raise InvalidRequestError(f"{name}{place}: {cause.problem or 'not YAML'}") from cause
    except yaml.YAMLError as cause:
        raise InvalidRequestError(f"{name}: {cause}") from cause
    except (ValueError, RecursionError) as cause:
        raise InvalidRequestError(f"{name}: cannot be read: {cause}") from cause
    return _plain(document, MAX_DEPTH, [MAX_ALIASED_NODES], name)


def _plain(value: Any, depth: int, left: list[int], name: str) -> Any:
    """A tree of JSON's kinds: keys as text, aliases copied, bounded in depth and size."""
    left[0] -= 1
    if depth == 0 or left[0] < 0:
        raise InvalidRequestError(f"{name}: nested too deep or too large")
    if isinstance(value, dict):
        return {_key(key): _plain(item, depth - 1, left, name) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth - 1, left, name) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise InvalidRequestError(f"{name}: a job cannot hold {_kind(value)}")


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {
        dict: "a map",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), type(value).__name__)
