"""Read a job file (JSON or YAML, a path or `-`) into what the API takes."""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

from nomadpy.cli.errors import CliError
from nomadpy.errors import NomadError

_HCL = (".hcl", ".nomad", ".nomad.hcl")


class JobFile(NamedTuple):
    """job: in wire case. source, format: what is stored with the version."""

    job: dict[str, Any]
    source: str
    format: str


def read(path: str) -> JobFile:
    """Raises CliError naming the file and what is wrong with it."""
    text = _text(path)
    stripped = text.lstrip()
    if path.endswith(_HCL) or stripped.startswith(("job ", 'job"', "variable ", "locals ")):
        raise CliError(
            f"Error getting job struct: {path} is HCL, and this build reads JSON and YAML.\n"
            "Convert it once with a Nomad CLI: nomad job run -output FILE.hcl > FILE.json"
        )
    from nomadpy.jobspec.parse import parse  # only commands with a job file pay for it

    name = "standard input" if path == "-" else path
    try:
        job = parse(text, name=name)
    except NomadError as error:
        raise CliError(
            f"Error getting job struct: {error.message if name in error.message else f'{name}: {error.message}'}"
        ) from error
    if not job.get("ID"):
        raise CliError(
            f'Error getting job struct: {name} names no job: "ID" is missing.\n'
            'The smallest job has "ID", "Type", "Datacenters" and "TaskGroups".'
        )
    return JobFile(job, text, "json" if stripped.startswith("{") else "yaml")


def place(job: dict[str, Any], namespace: str, region: str) -> dict[str, str]:
    """The query for a job's write: what the user chose, else what the job says."""
    query = {"namespace": namespace or str(job.get("Namespace") or "")}
    if region:
        query["region"] = region
    return {key: value for key, value in query.items() if value}


def _text(path: str) -> str:
    try:
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError as cause:
        raise CliError(f"Error getting job struct: there is no file {path}.") from cause
    except UnicodeDecodeError as cause:
        raise CliError(
            f"Error getting job struct: {path} is not UTF-8 text: {cause.reason}."
        ) from cause
    except OSError as cause:
        raise CliError(
            f"Error getting job struct: cannot read {path}: {cause.strerror}."
        ) from cause


def as_json(job: dict[str, Any]) -> str:
    """A job as the API's JSON, for -output."""
    import base64

    def encode(value: object) -> str:
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        raise TypeError(type(value).__name__)

    return json.dumps({"Job": job}, indent=4, default=encode, ensure_ascii=False)
