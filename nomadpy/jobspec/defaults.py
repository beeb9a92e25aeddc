"""What Nomad fills in where a job says nothing, as plain values in wire case.

Source: the recorded canonical forms of a real server; durations are nanoseconds.
"""

from __future__ import annotations

from typing import Any

from nomadpy.jobspec.durations import HOUR, MINUTE, SECOND

Block = dict[str, Any]

REGION = "global"
NAMESPACE = "default"
NODE_POOL = "default"
PRIORITY = 50
IDENTITY_AUDIENCE = "nomadproject.io"

UPDATE: Block = {
    "Stagger": 30 * SECOND,
    "MaxParallel": 1,
    "HealthCheck": "checks",
    "MinHealthyTime": 10 * SECOND,
    "HealthyDeadline": 5 * MINUTE,
    "ProgressDeadline": 10 * MINUTE,
    "Canary": 0,
    "AutoRevert": False,
    "AutoPromote": False,
}
MIGRATE: Block = {
    "MaxParallel": 1,
    "HealthCheck": "checks",
    "MinHealthyTime": 10 * SECOND,
    "HealthyDeadline": 5 * MINUTE,
}
EPHEMERAL_DISK: Block = {"Sticky": False, "Migrate": False, "SizeMB": 300}
LOG_CONFIG: Block = {"MaxFiles": 10, "MaxFileSizeMB": 10, "Disabled": False}
DISCONNECT: Block = {"Replace": True, "Reconcile": "best_score"}
PERIODIC: Block = {
    "Enabled": True,
    "Spec": "",
    "Specs": [],
    "SpecType": "cron",
    "ProhibitOverlap": False,
    "TimeZone": "UTC",
}
TEMPLATE: Block = {
    "SourcePath": "",
    "DestPath": "",
    "EmbeddedTmpl": "",
    "ChangeMode": "restart",
    "ChangeSignal": "",
    "Once": False,
    "Splay": 5 * SECOND,
    "Perms": "0644",
    "LeftDelim": "{{",
    "RightDelim": "}}",
    "Envvars": False,
    "VaultGrace": 0,
    "ErrMissingKey": False,
}
CHANGE_SCRIPT: Block = {
    "Command": "",
    "Args": [],
    "Timeout": 5 * SECOND,
    "FailOnError": False,
    "RunOnFirstRender": False,
}
VAULT: Block = {
    "Role": "",
    "Namespace": "",
    "Cluster": "default",
    "Env": True,
    "DisableFile": False,
    "ChangeMode": "restart",
    "AllowTokenExpiration": False,
}
CONSUL: Block = {"Namespace": "", "Cluster": "default", "Partition": ""}
VOLUME_MOUNT: Block = {"ReadOnly": False, "PropagationMode": "private", "SELinuxLabel": ""}
CSI_PLUGIN: Block = {
    "MountDir": "/csi",
    "StagePublishBaseDir": "/local/csi",
    "HealthTimeout": 30 * SECOND,
}
GATEWAY_PROXY: Block = {"ConnectTimeout": 5 * SECOND}

_RESTART_LONG_LIVED: Block = {
    "Interval": 30 * MINUTE,
    "Attempts": 2,
    "Delay": 15 * SECOND,
    "Mode": "fail",
    "RenderTemplates": False,
}
_RESTART_BATCH: Block = {**_RESTART_LONG_LIVED, "Interval": 24 * HOUR, "Attempts": 3}

_NO_RESCHEDULE: Block = {
    "Attempts": 0,
    "Interval": 0,
    "Delay": 0,
    "DelayFunction": "",
    "MaxDelay": 0,
    "Unlimited": False,
}
_RESCHEDULE: dict[str, Block] = {
    "service": {
        **_NO_RESCHEDULE,
        "Delay": 30 * SECOND,
        "DelayFunction": "exponential",
        "MaxDelay": HOUR,
        "Unlimited": True,
    },
    "batch": {
        **_NO_RESCHEDULE,
        "Attempts": 1,
        "Interval": 24 * HOUR,
        "Delay": 5 * SECOND,
        "DelayFunction": "constant",
    },
}


def restart_policy(job_type: str) -> Block:
    """The restart policy of a group that names none."""
    return _RESTART_LONG_LIVED if job_type in ("service", "system") else _RESTART_BATCH


def reschedule_policy(job_type: str) -> Block:
    """What fills the gaps of a reschedule block; all zero for types that do not reschedule."""
    return _RESCHEDULE.get(job_type, _NO_RESCHEDULE)
