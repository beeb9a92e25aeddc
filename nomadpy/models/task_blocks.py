"""The blocks inside a task."""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.models.base import Duration, Wire


class LogConfig(Wire, frozen=True, kw_only=True):
    max_files: int = 0
    max_file_size_mb: int = 0
    disabled: bool = False


class RestartPolicy(Wire, frozen=True, kw_only=True):
    interval: Duration = 0
    attempts: int = 0
    delay: Duration = 0
    mode: str = ""
    render_templates: bool = False


class ChangeScript(Wire, frozen=True, kw_only=True):
    command: str | None = None
    args: list[str] | None = None
    timeout: Duration | None = None
    fail_on_error: bool | None = None
    run_on_first_render: bool | None = None


class WaitConfig(Wire, frozen=True, kw_only=True):
    min: Duration | None = None
    max: Duration | None = None


class Template(Wire, frozen=True, kw_only=True):
    source_path: str | None = None
    dest_path: str | None = None
    embedded_tmpl: str | None = None
    change_mode: str | None = None
    change_script: ChangeScript | None = None
    change_signal: str | None = None
    once: bool | None = None
    splay: Duration | None = None
    perms: str | None = None
    uid: int | None = None
    gid: int | None = None
    left_delim: str | None = None
    right_delim: str | None = None
    envvars: bool | None = None
    vault_grace: Duration | None = None
    wait: WaitConfig | None = None
    err_missing_key: bool | None = None


class TaskArtifact(Wire, frozen=True, kw_only=True):
    getter_source: str | None = None
    getter_options: dict[str, str] | None = None
    getter_headers: dict[str, str] | None = None
    getter_mode: str | None = None
    getter_insecure: bool | None = None
    relative_dest: str | None = None
    chown: bool = False


class DispatchPayloadConfig(Wire, frozen=True, kw_only=True):
    file: str = ""


class VolumeMount(Wire, frozen=True, kw_only=True):
    volume: str | None = None
    destination: str | None = None
    read_only: bool | None = None
    propagation_mode: str | None = None
    se_linux_label: str | None = msgspec.field(default=None, name="SELinuxLabel")


class Vault(Wire, frozen=True, kw_only=True):
    policies: list[str] | None = None
    role: str = ""
    namespace: str | None = None
    cluster: str = ""
    env: bool | None = None
    disable_file: bool | None = None
    change_mode: str | None = None
    change_signal: str | None = None
    allow_token_expiration: bool | None = None


class Consul(Wire, frozen=True, kw_only=True):
    namespace: str = ""
    cluster: str = ""
    partition: str = ""


class WorkloadIdentity(Wire, frozen=True, kw_only=True):
    name: str = ""
    audience: list[str] | None = None
    change_mode: str = ""
    change_signal: str = ""
    env: bool = False
    file: bool = False
    filepath: str = ""
    service_name: str = ""
    ttl: Duration = 0
    extra_claims: list[str] | None = None


class TaskCSIPluginConfig(Wire, frozen=True, kw_only=True):
    id: str = ""
    type: str = ""
    mount_dir: str = ""
    stage_publish_base_dir: str = ""
    health_timeout: Duration = 0


class Action(Wire, frozen=True, kw_only=True):
    name: str = ""
    command: str = ""
    args: list[str] | None = None


class Secret(Wire, frozen=True, kw_only=True):
    name: str = ""
    provider: str = ""
    path: str = ""
    config: dict[str, Any] | None = None
    env: dict[str, str] | None = None


class TaskScheduleCron(Wire, frozen=True, kw_only=True):
    start: str = ""
    end: str = ""
    timezone: str = ""


class TaskSchedule(Wire, frozen=True, kw_only=True):
    cron: TaskScheduleCron | None = None
