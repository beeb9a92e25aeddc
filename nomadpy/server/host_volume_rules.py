"""What a host volume may be, and on which node a new one is made. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from nomadpy.errors import InvalidRequestError
from nomadpy.jobspec.faults import format_errors
from nomadpy.models.host_volume import (
    ACCESS_MODES,
    ATTACHMENT_MODES,
    PLUGIN_ATTRIBUTE,
    HostVolume,
)
from nomadpy.models.node import Node
from nomadpy.scheduler.feasibility import ALL_POOL, failed_constraint
from nomadpy.scheduler.fit import not_ready
from nomadpy.scheduler.operators import DISTINCT_HOSTS, DISTINCT_PROPERTY
from nomadpy.state.store import Snapshot

MAX_NAME = 128
_MIB = 1 << 20
_REASONS_SHOWN = 5
_PLUGIN_PREFIX, _PLUGIN_SUFFIX = PLUGIN_ATTRIBUTE.split("{}")


def check(volume: HostVolume, *, registering: bool) -> None:
    """Raise InvalidRequestError with all that is wrong with the words of a volume, the cluster aside."""
    faults: list[str] = []
    if not volume.name:
        faults.append("missing name: give the volume the name that jobs ask for as their source")
    if len(volume.name) > MAX_NAME or not volume.name.isprintable():
        faults.append(f"a name has at most {MAX_NAME} characters, all of them printable")
    if volume.id and len(volume.id) != 36:
        faults.append(
            f'invalid ID "{volume.id}": leave it out for a new volume; to change one, give its whole UUID'
        )
    faults += _capability_faults(volume)
    least, most = volume.requested_capacity_min_bytes, volume.requested_capacity_max_bytes
    if least < 0 or most < 0 or volume.capacity_bytes < 0:
        faults.append("capacities are not negative: they are numbers of bytes, 0 for no bound")
    elif most and least > most:
        faults.append(f"capacity_max ({most}) must not be less than capacity_min ({least})")
    for one in volume.constraints or ():
        if one.operand in (DISTINCT_HOSTS, DISTINCT_PROPERTY):
            faults.append(
                f"constraint {one.operand} is not allowed in a host volume: a volume is on one node; constrain by "
                "attributes of nodes"
            )
    if registering:
        if not volume.node_id:
            faults.append("missing node_id: a volume that exists is on a node, say which")
        if not volume.host_path.startswith("/"):
            faults.append(
                f'host_path must be the absolute path of the directory on the node, not "{volume.host_path}"'
            )
        least, most = volume.requested_capacity_min_bytes, volume.requested_capacity_max_bytes
        if volume.capacity_bytes and not least <= volume.capacity_bytes <= (
            most or volume.capacity_bytes
        ):
            faults.append(
                f"capacity ({volume.capacity_bytes}) must be between capacity_min ({least}) and capacity_max ({most})"
            )
    elif not volume.plugin_id:
        faults.append(
            'missing plugin_id: "mkdir" makes a directory; nodes name the plugins they have as attributes '
            f"{PLUGIN_ATTRIBUTE.format('<id>')}"
        )
    if not registering and volume.host_path:
        faults.append("host_path is the plugin's to choose: leave it out, or register the volume")
    if faults:
        raise InvalidRequestError(f'invalid host volume "{volume.name}": {format_errors(faults)}')


def _capability_faults(volume: HostVolume) -> list[str]:
    faults = []
    if not volume.requested_capabilities:
        faults.append(
            "must include at least one capability block: what jobs may do with the volume"
        )
    for one in volume.requested_capabilities or ():
        if one.attachment_mode not in ATTACHMENT_MODES:
            faults.append(
                f'invalid attachment mode: "{one.attachment_mode}"; there are {", ".join(ATTACHMENT_MODES)}'
            )
        if one.access_mode not in ACCESS_MODES:
            faults.append(
                f'invalid access mode: "{one.access_mode}"; there are {", ".join(ACCESS_MODES)}'
            )
    return faults


def check_change(before: HostVolume, after: HostVolume) -> None:
    """Raise InvalidRequestError for what cannot change of a volume that exists."""
    faults = [
        f'{word} cannot change once the volume exists: it is "{was}", not "{now}"; make a new volume for that'
        for word, was, now in (
            ("name", before.name, after.name),
            ("plugin_id", before.plugin_id, after.plugin_id),
            ("node_id", before.node_id, after.node_id or before.node_id),
            ("node_pool", before.node_pool, after.node_pool or before.node_pool),
        )
        if was != now
    ]
    most = after.requested_capacity_max_bytes
    if most and most < before.capacity_bytes:
        faults.append(
            f"capacity_max ({most}) must not be less than what the volume has ({before.capacity_bytes}): volumes do not shrink"
        )
    if faults:
        raise InvalidRequestError(f"cannot change volume {before.id}: {format_errors(faults)}")


def place(snapshot: Snapshot, volume: HostVolume, *, needs_plugin: bool = True) -> Node:
    """Return the node for a new volume: the one it names, else the one with the fewest volumes of those that will do.

    Raises InvalidRequestError that says why there is none.
    """
    if volume.node_pool and snapshot.node_pool(volume.node_pool) is None:
        raise InvalidRequestError(
            f'node pool "{volume.node_pool}" does not exist: `nomadpy node pool list` shows those that do'
        )
    if volume.node_id:
        node = snapshot.node(volume.node_id)
        if node is None:
            raise InvalidRequestError(
                f'node "{volume.node_id}" does not exist: give the whole ID of a node, or none to have one chosen'
            )
        reason = why_not(snapshot, volume, node, needs_plugin=needs_plugin)
        if reason:
            raise InvalidRequestError(
                f'volume "{volume.name}" cannot be on node {node.name} ({node.id}): {reason}'
            )
        return node
    reasons: dict[str, list[str]] = {}
    chosen: list[tuple[int, str, Node]] = []
    for node in snapshot.nodes():
        reason = why_not(snapshot, volume, node, needs_plugin=needs_plugin)
        if reason:
            reasons.setdefault(reason, []).append(node.name)
        else:
            chosen.append((len(snapshot.host_volumes_by_node(node.id)), node.id, node))
    if not chosen:
        raise InvalidRequestError(
            f'no node for volume "{volume.name}": {_told(reasons, snapshot.nodes(), volume)}'
        )
    return min(chosen, key=lambda one: one[:2])[2]


def why_not(
    snapshot: Snapshot, volume: HostVolume, node: Node, *, needs_plugin: bool = True
) -> str:
    """Why a volume cannot be on a node, or ""."""
    pool = node.node_pool or "default"
    if volume.node_pool not in ("", ALL_POOL, pool):
        return f'its node pool is "{pool}", not "{volume.node_pool}"'
    refused = not_ready(node)
    if refused:
        return refused.removeprefix("node ")
    attribute = PLUGIN_ATTRIBUTE.format(volume.plugin_id)
    if needs_plugin and attribute not in (node.attributes or {}):
        return f'it has no host volume plugin "{volume.plugin_id}"'
    problem = failed_constraint(tuple(volume.constraints or ()), node)
    if problem:
        return f"constraint {problem} does not hold"
    there = (node.host_volumes or {}).get(volume.name)
    if there is not None and there.id != volume.id:
        return f'it has a host volume "{volume.name}" already' + (
            "" if there.id else " in its configuration"
        )
    others = snapshot.host_volumes_by_node(node.id)
    for other in others:
        if (
            other.name == volume.name
            and other.namespace == volume.namespace
            and other.id != volume.id
        ):
            return f'it has a volume "{volume.name}" in namespace "{volume.namespace}" already'
    wanted = volume.requested_capacity_min_bytes
    if wanted and wanted > _free_bytes(node, others):
        return f"it has less than {wanted} bytes left on its disk"
    return ""


def _free_bytes(node: Node, volumes: Iterable[HostVolume]) -> int:
    """What the node's disk has beyond what other volumes were given."""
    have, keep = node.node_resources, node.reserved_resources
    if have is None:
        return 0
    disk_mb = have.disk.disk_mb - (keep.disk.disk_mb if keep is not None else 0)
    return disk_mb * _MIB - sum(one.capacity_bytes for one in volumes)


def _told(reasons: dict[str, list[str]], nodes: Iterable[Node], volume: HostVolume) -> str:
    if not reasons:
        return "the cluster has no nodes; start an agent first"
    ordered = sorted(reasons.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    parts = [
        f"{len(names)} {'node' if len(names) == 1 else 'nodes'} ({', '.join(sorted(names)[:3])}"
        f"{', ...' if len(names) > 3 else ''}): {reason}"
        for reason, names in ordered[:_REASONS_SHOWN]
    ]
    if len(ordered) > _REASONS_SHOWN:
        parts.append(f"{len(ordered) - _REASONS_SHOWN} more reasons")
    plugins = sorted({plugin for node in nodes for plugin in plugins_of(node)})
    if volume.plugin_id and volume.plugin_id not in plugins:
        parts.append(f"plugins that nodes have: {', '.join(plugins) or 'none'}")
    return "; ".join(parts)


def plugins_of(node: Node) -> list[str]:
    """The host volume plugins of a node."""
    return [
        name[len(_PLUGIN_PREFIX) : -len(_PLUGIN_SUFFIX)]
        for name in node.attributes or {}
        if name.startswith(_PLUGIN_PREFIX) and name.endswith(_PLUGIN_SUFFIX)
    ]
