"""What happens to a job before it is proposed: defaults filled in, every rule checked, places it names looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from nomadpy.errors import InvalidRequestError, ValidationError
from nomadpy.jobspec.canonicalize import canonicalize
from nomadpy.jobspec.faults import format_errors, format_warnings
from nomadpy.jobspec.validate import validate, warnings
from nomadpy.models.envelope import DEFAULT_NAMESPACE
from nomadpy.models.job import Job
from nomadpy.server.not_yet import without_effect
from nomadpy.server.settings import ServerSettings
from nomadpy.state.store import Snapshot


class Admitted(msgspec.Struct, frozen=True):
    """A job that may be registered. warnings: the text for the reply, "" none."""

    job: Job
    warnings: str = ""


def admit(
    raw: dict[str, Any],
    settings: ServerSettings,
    snapshot: Snapshot,
    *,
    namespace: str = "",
    new_id: Callable[[], str] | None = None,
) -> Admitted:
    """Return the complete job. namespace: wins over the job's own, "" leaves it. Raises InvalidRequestError (400) or ValidationError (500) naming all faults."""
    if not raw.get("ID"):
        raise InvalidRequestError("Job ID hasn't been provided")
    place = namespace or raw.get("Namespace") or DEFAULT_NAMESPACE
    previous = snapshot.job(place, str(raw["ID"]))
    job = canonicalize(
        raw, region=settings.region, namespace=namespace, previous=previous, new_policy_id=new_id
    )
    faults = validate(job, max_priority=settings.job_max_priority)
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
    return Admitted(job, format_warnings([*warnings(job), *without_effect(job)]))
