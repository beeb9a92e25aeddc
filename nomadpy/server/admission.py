"""What happens to a job before it is proposed: defaults filled in, every rule checked, places it names looked up."""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.errors import InvalidRequestError, ValidationError
from nomadpy.jobspec.canonicalize import canonicalize
from nomadpy.jobspec.validate import format_errors, validate, warnings
from nomadpy.models.job import Job
from nomadpy.server.settings import ServerSettings
from nomadpy.state.store import Snapshot


class Admitted(msgspec.Struct, frozen=True):
    """A job that may be registered. warnings: the text for the reply, "" none."""

    job: Job
    warnings: str = ""


def admit(raw: dict[str, Any], settings: ServerSettings, snapshot: Snapshot) -> Admitted:
    """Return the complete job. Raises InvalidRequestError (400) or ValidationError (500) naming all faults."""
    if not raw.get("ID"):
        raise InvalidRequestError("Job ID hasn't been provided")
    job = canonicalize(raw, region=settings.region)
    faults = validate(job)
    if faults:
        raise ValidationError(format_errors(faults))
    if snapshot.namespace(job.namespace) is None:
        raise ValidationError(
            format_errors([f'job "{job.id}" is in nonexistent namespace "{job.namespace}"'])
        )
    if snapshot.node_pool(job.node_pool) is None:
        raise ValidationError(
            format_errors([f'job "{job.id}" is in nonexistent node pool "{job.node_pool}"'])
        )
    return Admitted(job, format_warnings(warnings(job)))


def format_warnings(texts: list[str]) -> str:
    """Return warnings as the reply carries them."""
    if not texts:
        return ""
    head = "1 warning:" if len(texts) == 1 else f"{len(texts)} warnings:"
    return "\n".join([head, "", *(f"* {text}" for text in texts)])
