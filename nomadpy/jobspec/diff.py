"""The structural difference of two jobs, as `job plan` and job versions show it.

Scalars and string maps of a struct become fields (`Meta[team]`), structs and lists become objects. Inside an object that
differs, equal fields are shown too (type None) when the difference is contextual.
What a plan would do about it is written into it by `annotate` (annotate.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from nomadpy.errors import InvalidRequestError
from nomadpy.jobspec.annotate import annotate
from nomadpy.models.diff import FieldDiff, JobDiff, ObjectDiff, TaskDiff, TaskGroupDiff
from nomadpy.models.job import Job, Multiregion, ParameterizedJobConfig, TaskGroup
from nomadpy.models.resources import NetworkResource, Resources
from nomadpy.models.service import Service, ServiceCheck
from nomadpy.models.task import Task

__all__ = ["annotate", "diff_jobs"]

NONE, ADDED, DELETED, EDITED = "None", "Added", "Deleted", "Edited"

Flat = dict[str, str]

# Changes with every registration, or says nothing about what the user wrote.
_JOB_SILENT = frozenset(
    "ID Status StatusDescription Version Stable CreateIndex ModifyIndex JobModifyIndex Update SubmitTime NomadTokenID "
    "VersionTag Payload".split()
)


def diff_jobs(old: Job | None, new: Job | None, *, contextual: bool = True) -> JobDiff:
    """Return how `new` differs from `old`; None stands for "there is none".

    Raises InvalidRequestError when both are jobs with different ids.
    """
    if old is not None and new is not None and old.id != new.id:
        raise InvalidRequestError(f"can not diff jobs with different IDs: {old.id} and {new.id}")
    shown = new or old
    fields = _fields(_flat(old, _JOB_SILENT), _flat(new, _JOB_SILENT), contextual=False)
    objects = _all(
        _strings(_of(old, "datacenters"), _of(new, "datacenters"), "Datacenters", contextual),
        _set(_of(old, "constraints"), _of(new, "constraints"), "Constraint", contextual),
        _set(_of(old, "affinities"), _of(new, "affinities"), "Affinity", contextual),
        _set(_of(old, "spreads"), _of(new, "spreads"), "Spread", contextual),
        _object(_of(old, "periodic"), _of(new, "periodic"), "Periodic", contextual),
        _object(
            _of(old, "parameterized_job"),
            _of(new, "parameterized_job"),
            "ParameterizedJob",
            contextual,
        ),
        _object(_of(old, "multiregion"), _of(new, "multiregion"), "Multiregion", contextual),
        _object(_of(old, "ui"), _of(new, "ui"), "UI", contextual),
    )
    groups = [
        _group(before, after, contextual)
        for before, after in _pairs(_of(old, "task_groups"), _of(new, "task_groups"))
    ]
    kind = _kind(old, new)
    if kind == EDITED:
        changed = (
            any(f.type != NONE for f in fields) or objects or any(g.type != NONE for g in groups)
        )
        kind = EDITED if changed else NONE
    return JobDiff(
        type=kind,
        id=shown.id if shown else "",
        fields=fields or None,
        objects=objects or None,
        task_groups=groups or None,
    )


def _group(old: TaskGroup | None, new: TaskGroup | None, contextual: bool) -> TaskGroupDiff:
    fields = _fields(_flat(old, {"Name"}), _flat(new, {"Name"}), contextual=False)
    objects = _all(
        _set(_of(old, "constraints"), _of(new, "constraints"), "Constraint", contextual),
        _set(_of(old, "affinities"), _of(new, "affinities"), "Affinity", contextual),
        _set(_of(old, "spreads"), _of(new, "spreads"), "Spread", contextual),
        _object(
            _of(old, "restart_policy"), _of(new, "restart_policy"), "RestartPolicy", contextual
        ),
        _object(_of(old, "disconnect"), _of(new, "disconnect"), "Disconnect", contextual),
        _object(_of(old, "migrate"), _of(new, "migrate"), "Migrate", contextual),
        _object(
            _of(old, "reschedule_policy"),
            _of(new, "reschedule_policy"),
            "ReschedulePolicy",
            contextual,
        ),
        _object(
            _of(old, "ephemeral_disk"), _of(new, "ephemeral_disk"), "EphemeralDisk", contextual
        ),
        _object(_of(old, "scaling"), _of(new, "scaling"), "Scaling", contextual, _SCALING_SILENT),
        _object(_of(old, "consul"), _of(new, "consul"), "Consul", contextual),
        _object(_of(old, "update"), _of(new, "update"), "Update", contextual, {"Stagger"}),
        _set(_of(old, "networks"), _of(new, "networks"), "Network", contextual),
        _set(_values(_of(old, "volumes")), _values(_of(new, "volumes")), "Volume", contextual),
        _named(_of(old, "services"), _of(new, "services"), "Service", contextual),
    )
    tasks = [
        _task(before, after, contextual)
        for before, after in _pairs(_of(old, "tasks"), _of(new, "tasks"))
    ]
    kind = _kind(old, new)
    if kind == EDITED and not fields and not objects and all(t.type == NONE for t in tasks):
        kind = NONE
    return TaskGroupDiff(
        type=kind,
        name=_name(new or old),
        fields=fields or None,
        objects=objects or None,
        tasks=tasks or None,
    )


def _task(old: Task | None, new: Task | None, contextual: bool) -> TaskDiff:
    silent = {"Name", "Config"}
    fields = _fields(_flat(old, silent), _flat(new, silent), contextual=False)
    objects = _all(
        _set(_of(old, "constraints"), _of(new, "constraints"), "Constraint", contextual),
        _set(_of(old, "affinities"), _of(new, "affinities"), "Affinity", contextual),
        _config(_of(old, "config"), _of(new, "config"), "Config", contextual),
        _object(_of(old, "resources"), _of(new, "resources"), "Resources", contextual),
        _object(_of(old, "restart_policy"), _of(new, "restart_policy"), "RestartPolicy", contextual)
        if old is not None and new is not None
        else [],
        _object(_of(old, "lifecycle"), _of(new, "lifecycle"), "Lifecycle", contextual),
        _object(_of(old, "log_config"), _of(new, "log_config"), "LogConfig", contextual),
        _object(
            _of(old, "dispatch_payload"),
            _of(new, "dispatch_payload"),
            "DispatchPayload",
            contextual,
        ),
        _set(_of(old, "artifacts"), _of(new, "artifacts"), "Artifact", contextual),
        _named(_of(old, "services"), _of(new, "services"), "Service", contextual),
        _object(_of(old, "vault"), _of(new, "vault"), "Vault", contextual),
        _object(_of(old, "consul"), _of(new, "consul"), "Consul", contextual),
        _set(_of(old, "templates"), _of(new, "templates"), "Template", contextual),
        _object(_of(old, "identity"), _of(new, "identity"), "Identity", contextual),
        _named(_of(old, "identities"), _of(new, "identities"), "Identity", contextual),
        _set(_of(old, "volume_mounts"), _of(new, "volume_mounts"), "VolumeMount", contextual),
        _object(
            _of(old, "csi_plugin_config"),
            _of(new, "csi_plugin_config"),
            "TaskCSIPluginConfig",
            contextual,
        ),
        _set(
            _of(old, "scaling_policies"),
            _of(new, "scaling_policies"),
            "Scaling",
            contextual,
            _SCALING_SILENT,
        ),
        _named(_of(old, "actions"), _of(new, "actions"), "Action", contextual),
        _named(_of(old, "secrets"), _of(new, "secrets"), "Secret", contextual),
        _object(_of(old, "schedule"), _of(new, "schedule"), "Schedule", contextual),
    )
    kind = _kind(old, new)
    if kind == EDITED and not fields and not objects:
        kind = NONE
    return TaskDiff(
        type=kind, name=_name(new or old), fields=fields or None, objects=objects or None
    )


_SCALING_SILENT = frozenset(("ID", "CreateIndex", "ModifyIndex", "Namespace", "Target"))

# What the objects inside an object are called where it is not the field's own wire name.
_INNER_NAMES: dict[tuple[type, str], str] = {
    (NetworkResource, "ReservedPorts"): "Static Port",
    (NetworkResource, "DynamicPorts"): "Dynamic Port",
    (Resources, "Networks"): "Network",
    (Resources, "Devices"): "Device",
    (Service, "Checks"): "Check",
    (Service, "Connect"): "ConsulConnect",
    (ServiceCheck, "CheckRestart"): "CheckRestart",
    (Multiregion, "Regions"): "Region",
    (ParameterizedJobConfig, "MetaRequired"): "MetaRequired",
}


def _of(value: object, attribute: str) -> Any:
    return None if value is None else getattr(value, attribute)


def _values(volumes: dict[str, Any] | None) -> list[Any]:
    return [volumes[name] for name in sorted(volumes)] if volumes else []


def _all(*parts: list[ObjectDiff]) -> list[ObjectDiff]:
    return [one for part in parts for one in part]


def _name(value: Any) -> str:
    return str(value.name) if value is not None else ""


def _kind(old: object, new: object) -> str:
    if old is None and new is None:
        return NONE
    if old is None:
        return ADDED
    if new is None:
        return DELETED
    return NONE if old == new else EDITED


def _pairs(old: Sequence[Any] | None, new: Sequence[Any] | None) -> list[tuple[Any, Any]]:
    """Both sides of each name, sorted by name."""
    before = {_name(one): one for one in old or []}
    after = {_name(one): one for one in new or []}
    return [(before.get(name), after.get(name)) for name in sorted({*before, *after})]


def _wire_fields(value: msgspec.Struct) -> Iterable[tuple[str, Any]]:
    kind = type(value)
    for attribute, wire in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True):
        yield wire, getattr(value, attribute)


def _flat(value: msgspec.Struct | None, silent: Iterable[str] = ()) -> Flat:
    """The scalars of a struct, and the entries of its string maps, as text."""
    if value is None:
        return {}
    hidden = frozenset(silent)
    out: Flat = {}
    for wire, item in _wire_fields(value):
        if wire in hidden or item is None:
            continue
        if isinstance(item, dict):
            # A map that holds more than scalars is an object of its own (_inner).
            if all(isinstance(entry, str | int | float) for entry in item.values()):
                out.update({f"{wire}[{key}]": _text(entry) for key, entry in item.items()})
        elif isinstance(item, str | int | float):
            out[wire] = _text(item)
    return out


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _fields(old: Flat, new: Flat, *, contextual: bool) -> list[FieldDiff]:
    names = sorted({*old, *new})
    found = (_field(name, old.get(name, ""), new.get(name, ""), contextual) for name in names)
    return [one for one in found if one is not None]


def _field(name: str, old: str, new: str, contextual: bool) -> FieldDiff | None:
    if old == new:
        return FieldDiff(type=NONE, name=name, old=old, new=new) if contextual else None
    kind = ADDED if not old else DELETED if not new else EDITED
    return FieldDiff(type=kind, name=name, old=old, new=new)


def _object(
    old: msgspec.Struct | None,
    new: msgspec.Struct | None,
    name: str,
    contextual: bool,
    silent: Iterable[str] = (),
) -> list[ObjectDiff]:
    """The difference of two structs of one kind; nothing when they are equal."""
    if old == new:
        return []
    fields = _fields(_flat(old, silent), _flat(new, silent), contextual=contextual)
    objects = _inner(old, new, contextual, frozenset(silent))
    kind = _kind(old, new)
    if kind == EDITED and all(one.type == NONE for one in fields) and not objects:
        return []
    if not fields and not objects and kind != EDITED:
        # An empty block that is there or not is a difference, though it has nothing to show.
        return [ObjectDiff(type=kind, name=name)]
    return [ObjectDiff(type=kind, name=name, fields=fields or None, objects=objects or None)]


def _inner(
    old: msgspec.Struct | None, new: msgspec.Struct | None, contextual: bool, silent: frozenset[str]
) -> list[ObjectDiff]:
    """The objects inside an object, by the kind of each field."""
    shown = new if new is not None else old
    if shown is None:
        return []
    kind = type(shown)
    before = dict(_wire_fields(old)) if old is not None else {}
    after = dict(_wire_fields(new)) if new is not None else {}
    out: list[ObjectDiff] = []
    for wire in kind.__struct_encode_fields__:
        left, right = before.get(wire), after.get(wire)
        if wire in silent or left == right:
            continue
        name = _INNER_NAMES.get((kind, wire), wire)
        specimen = right if right else left
        out += _differ_for(specimen)(left, right, name, contextual)
    return out


def _differ_for(specimen: Any) -> Callable[[Any, Any, str, bool], list[ObjectDiff]]:
    if isinstance(specimen, msgspec.Struct):
        return _object
    if isinstance(specimen, list) and specimen:
        if isinstance(specimen[0], Service | ServiceCheck):
            return _named
        if isinstance(specimen[0], msgspec.Struct):
            return _set
        if isinstance(specimen[0], str | int):
            return _strings
    if isinstance(specimen, dict) and any(isinstance(v, msgspec.Struct) for v in specimen.values()):
        return lambda left, right, name, context: _set(_values(left), _values(right), name, context)
    if isinstance(specimen, dict) and any(isinstance(v, dict | list) for v in specimen.values()):
        return _config
    return _nothing


def _nothing(_old: Any, _new: Any, _name: str, _contextual: bool) -> list[ObjectDiff]:
    return []


def _strings(
    old: Sequence[Any] | None, new: Sequence[Any] | None, name: str, contextual: bool
) -> list[ObjectDiff]:
    """Two sets of strings; order says nothing."""
    before, after = {str(one) for one in old or []}, {str(one) for one in new or []}
    if before == after:
        return []
    fields = [
        field
        for one in sorted(before | after)
        if (
            field := _field(
                name, one if one in before else "", one if one in after else "", contextual
            )
        )
    ]
    fields.sort(key=lambda field: (field.old, field.new))
    gone, come = before - after, after - before
    kind = EDITED if gone and come else ADDED if come else DELETED
    return [ObjectDiff(type=kind, name=name, fields=fields)]


def _set(
    old: Sequence[Any] | None,
    new: Sequence[Any] | None,
    name: str,
    contextual: bool,
    silent: Iterable[str] = (),
) -> list[ObjectDiff]:
    """Two lists of structs without names: what is in one only is deleted or added."""
    before, after = list(old or []), list(new or [])
    gone = [one for one in before if one not in after]
    come = [one for one in after if one not in before]
    if silent and len(gone) == 1 and len(come) == 1:
        return _object(gone[0], come[0], name, contextual, silent)
    parts = [_object(one, None, name, contextual, silent) for one in gone]
    parts += [_object(None, one, name, contextual, silent) for one in come]
    return sorted(_all(*parts), key=_order)


def _named(
    old: Sequence[Any] | None, new: Sequence[Any] | None, name: str, contextual: bool
) -> list[ObjectDiff]:
    """Two lists of structs that have names: what has the same name is the same thing, edited."""
    waiting: dict[str, list[Any]] = {}
    for one in new or []:
        waiting.setdefault(_name(one), []).append(one)
    parts: list[list[ObjectDiff]] = []
    unmatched: list[Any] = []
    for one in old or []:
        same = waiting.get(_name(one), [])
        if one in same:
            same.remove(one)
        else:
            unmatched.append(one)
    for one in unmatched:
        same = waiting.get(_name(one), [])
        parts.append(_object(one, same.pop(0) if same else None, name, contextual))
    parts += [_object(None, one, name, contextual) for rest in waiting.values() for one in rest]
    return sorted(_all(*parts), key=_order)


def _order(one: ObjectDiff) -> tuple[str, str, list[tuple[str, str, str]]]:
    return one.type, one.name, [(f.name, f.old, f.new) for f in one.fields or []]


def _config(
    old: dict[str, Any] | None, new: dict[str, Any] | None, name: str, contextual: bool
) -> list[ObjectDiff]:
    """Two free maps, flattened to paths: `args[0]`, `logging[0].type`, `labels[team]`."""
    before: Flat = {}
    after: Flat = {}
    _flatten(old or {}, "", before)
    _flatten(new or {}, "", after)
    fields = _fields(before, after, contextual=contextual)
    if all(one.type == NONE for one in fields):
        return []
    kind = ADDED if not before else DELETED if not after else EDITED
    return [ObjectDiff(type=kind, name=name, fields=fields)]


def _flatten(value: Any, path: str, out: Flat) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _flatten(item, f"{path}[{key}]" if path else str(key), out)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _flatten(item, f"{path}[{number}]", out)
    elif value is None:
        out[path] = "nil"
    elif isinstance(value, str | int | float):
        out[path] = _text(value)
    else:
        out[path] = json.dumps(value, default=str)
