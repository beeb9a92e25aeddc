"""The task's half of canonicalize.py: tasks, their blocks, services and networks, in wire case."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from nomadpy.jobspec import defaults
from nomadpy.jobspec.defaults import Block

_INTERPOLATED = re.compile(r"\$\{(JOB|TASKGROUP|GROUP|TASK|BASE)\}")


def without_empty(raw: Block) -> Block:
    """A copy without nulls and without empty lists and maps: to Go's server empty and nil are one."""
    return {
        key: value
        for key, value in raw.items()
        if value is not None and value != [] and (value != {} or key in _PRESENT)
    }


# Empty blocks that mean something by being there.
_PRESENT = frozenset(
    "Scaling EphemeralDisk RestartPolicy Update ReschedulePolicy Reschedule Migrate Disconnect Consul Periodic ParameterizedJob "
    "Multiregion Resources LogConfig Vault DispatchPayload CSIPluginConfig Identity Lifecycle Schedule SidecarService Proxy "
    "Gateway Ingress Terminating Mesh Connect NUMA DNS CNI Wait ChangeScript CheckRestart".split()
)


def filled(base: Block, over: Block | None) -> Block:
    """`base` with what `over` says laid over it; neither is changed."""
    return {**base, **{key: value for key, value in (over or {}).items() if value is not None}}


def task(raw: Block, job: Block, group: Block) -> Block:
    """One complete task of `group`, whose own restart policy is complete already."""
    one = without_empty(raw)
    one["Name"] = one.get("Name", "")
    one["Resources"] = resources(one.get("Resources", {}))
    one["KillTimeout"] = one.get("KillTimeout") or 5 * 10**9
    one["LogConfig"] = log_config(one.get("LogConfig", {}))
    one["RestartPolicy"] = filled(group["RestartPolicy"], one.get("RestartPolicy", {}))
    lifecycle = one.get("Lifecycle")
    if lifecycle is not None and not lifecycle.get("Hook") and not lifecycle.get("Sidecar"):
        del one["Lifecycle"]
    if "Artifacts" in one:
        one["Artifacts"] = [_artifact(artifact) for artifact in one["Artifacts"]]
    if "Templates" in one:
        one["Templates"] = [_template(template) for template in one["Templates"]]
    if "Vault" in one:
        one["Vault"] = _vault(one["Vault"])
    if "Consul" in one:
        one["Consul"] = filled(defaults.CONSUL, one["Consul"])
    if "VolumeMounts" in one:
        one["VolumeMounts"] = [
            filled(defaults.VOLUME_MOUNT, mount) for mount in one["VolumeMounts"]
        ]
    if "CSIPluginConfig" in one:
        one["CSIPluginConfig"] = filled(defaults.CSI_PLUGIN, one["CSIPluginConfig"])
    if "Services" in one:
        one["Services"] = services(one["Services"], job, group, one)
    _identities(one)
    return one


def resources(raw: Block) -> Block:
    """Resources asked for; with cores there is no default cpu share."""
    asked = without_empty(raw)
    if not asked.get("Cores"):
        asked.setdefault("CPU", 100)
    asked.setdefault("MemoryMB", 300)
    if "Networks" in asked:
        asked["Networks"] = ports_and_networks(asked["Networks"])
    if "Devices" in asked:
        asked["Devices"] = [{"Count": 1, **device} for device in asked["Devices"]]
        for device in asked["Devices"]:
            if device.get("Affinities"):
                device["Affinities"] = [
                    {"Weight": 50, **affinity} for affinity in device["Affinities"]
                ]
    if "NUMA" in asked:
        asked["NUMA"] = {**asked["NUMA"], "Affinity": asked["NUMA"].get("Affinity") or "none"}
    return asked


def log_config(raw: Block) -> Block:
    """Log rotation; `Enabled` is the old spelling of not disabled."""
    said = dict(raw)
    enabled = said.pop("Enabled", None)
    if enabled is not None and "Disabled" not in said:
        said["Disabled"] = not enabled
    return filled(defaults.LOG_CONFIG, said)


def ports_and_networks(raw: list[Block]) -> list[Block]:
    """Networks whose ports name the host network they are on."""
    networks = []
    for one in raw:
        network = without_empty(one)
        for key in ("ReservedPorts", "DynamicPorts"):
            if key in network:
                network[key] = [
                    {**port, "HostNetwork": port.get("HostNetwork") or "default"}
                    for port in network[key]
                ]
        networks.append(network)
    return networks


def services(raw: list[Block], job: Block, group: Block, one: Block | None) -> list[Block]:
    """Services of a group, or of the task `one`, with names and checks complete."""
    return [_service(service, job, group, one) for service in raw]


def _service(raw: Block, job: Block, group: Block, one: Block | None) -> Block:
    service = without_empty(raw)
    parts = {"JOB": str(job["Name"]), "TASKGROUP": str(group["Name"]), "GROUP": str(group["Name"])}
    base = f"{parts['JOB']}-{parts['TASKGROUP']}"
    if one is not None:
        parts["TASK"] = str(one["Name"])
        base = f"{base}-{parts['TASK']}"
    parts["BASE"] = base
    name = service.get("Name") or base
    # What is not known here (${TASK} of a group's service) stays for the client.
    service["Name"] = _INTERPOLATED.sub(lambda found: parts.get(found[1], found[0]), str(name))
    service["AddressMode"] = service.get("AddressMode") or "auto"
    service["OnUpdate"] = service.get("OnUpdate") or "require_healthy"
    service["Provider"] = service.get("Provider") or "consul"
    service["Cluster"] = service.get("Cluster") or "default"
    service["Namespace"] = job["Namespace"] if service["Provider"] == "nomad" else ""
    # What the service says of restarts is stored with each check only.
    inherited = service.pop("CheckRestart", None)
    if "Checks" in service:
        service["Checks"] = [_check(check, service, inherited) for check in service["Checks"]]
    if "Connect" in service:
        service["Connect"] = _connect(service["Connect"])
    return service


def _check(raw: Block, service: Block, inherited: Block | None) -> Block:
    check = without_empty(raw)
    if not check.get("Name"):
        check["Name"] = f'service: "{service["Name"]}" check'
    check["OnUpdate"] = check.get("OnUpdate") or service["OnUpdate"]
    if "InitialStatus" in check:
        check["InitialStatus"] = str(check["InitialStatus"]).lower()
    restart = check.get("CheckRestart")
    if restart is not None or inherited is not None:
        check["CheckRestart"] = _check_restart({**(inherited or {}), **(restart or {})})
    return check


def _check_restart(raw: Block) -> Block:
    return {"Limit": 0, "Grace": 10**9, "IgnoreWarnings": False, **raw}


def _connect(raw: Block) -> Block:
    connect = dict(raw)
    sidecar = connect.get("SidecarTask")
    if sidecar is not None:
        connect["SidecarTask"] = {
            **sidecar,
            "Resources": resources(sidecar.get("Resources") or {}),
            "LogConfig": log_config(sidecar.get("LogConfig") or {}),
            "KillTimeout": sidecar.get("KillTimeout") or 5 * 10**9,
            "ShutdownDelay": sidecar.get("ShutdownDelay") or 0,
        }
    gateway = connect.get("Gateway")
    if gateway is not None:
        connect["Gateway"] = {
            **gateway,
            "Proxy": filled(defaults.GATEWAY_PROXY, gateway.get("Proxy")),
        }
    return connect


def _artifact(raw: Block) -> Block:
    artifact = without_empty(raw)
    source = str(artifact.get("GetterSource", ""))
    artifact["GetterSource"] = source
    mode = artifact["GetterMode"] = artifact.get("GetterMode") or "any"
    artifact.setdefault("GetterInsecure", False)
    if not artifact.get("RelativeDest"):
        file_name = posixpath.basename(source.split("?")[0])
        artifact["RelativeDest"] = f"local/{file_name}" if mode == "file" else "local/"
    return artifact


def _template(raw: Block) -> Block:
    template = filled(defaults.TEMPLATE, raw)
    template["ChangeSignal"] = str(template["ChangeSignal"]).upper()
    script = template.get("ChangeScript")
    if script is not None:
        template["ChangeScript"] = filled(defaults.CHANGE_SCRIPT, script)
    wait = template.get("Wait")
    if wait is not None:
        minimum = wait.get("Min", 5 * 10**9)
        template["Wait"] = {"Min": minimum, "Max": wait.get("Max", 4 * minimum)}
    return template


def _vault(raw: Block) -> Block:
    vault: dict[str, Any] = filled(defaults.VAULT, without_empty(raw))
    vault["ChangeMode"] = vault["ChangeMode"] or "restart"
    default_signal = "SIGHUP" if vault["ChangeMode"] != "signal" else ""
    vault["ChangeSignal"] = str(vault.get("ChangeSignal") or default_signal).upper()
    return vault


def _identities(one: Block) -> None:
    """The default identity apart from the named ones; only Nomad itself is its audience."""
    named = []
    default = one.get("Identity")
    for identity in one.pop("Identities", []):
        if identity.get("Name") in (None, "", "default") and default is None:
            default = identity
        else:
            named.append(
                {**identity, "ChangeSignal": str(identity.get("ChangeSignal", "")).upper()}
            )
    default = without_empty(default or {})
    default["Name"] = default.get("Name") or "default"
    if default["Name"] == "default":
        default["Audience"] = [defaults.IDENTITY_AUDIENCE]
    default["ChangeSignal"] = str(default.get("ChangeSignal", "")).upper()
    one["Identity"] = default
    if named:
        one["Identities"] = named
