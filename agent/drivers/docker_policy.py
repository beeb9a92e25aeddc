"""What an operator allows containers to have, and what a job may ask of one."""

from __future__ import annotations

import msgspec

DEFAULT_CAPS = (
    "audit_write chown dac_override fowner fsetid kill mknod net_bind_service setfcap setgid setpcap setuid sys_chroot"
).split()
LABEL_PREFIX = "com.hashicorp.nomad."


class LoggingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`logging`: the daemon's log driver; empty means json-file, bounded."""

    type: str = ""
    driver: str = ""
    config: dict[str, str] = {}


class VolumesPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """`volumes`: whether paths outside the allocation and named volumes may be mounted."""

    enabled: bool = False
    selinuxlabel: str = ""


class GCPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """`gc`: whether an ended container is removed."""

    image: bool = True
    image_delay: str = "3m"
    container: bool = True


class AuthPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """`auth`: a docker config.json with registry credentials, or a credential helper."""

    config: str = ""
    helper: str = ""


class TLSPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """`tls`: files for a daemon behind TCP."""

    cert: str = ""
    key: str = ""
    ca: str = ""


class AllowedModes(msgspec.Struct, frozen=True, kw_only=True):
    """`allowed_modes`: namespace modes that reach outside the container, e.g. "host"; none by default."""

    pid: list[str] = []
    ipc: list[str] = []
    userns: list[str] = []
    uts: list[str] = []


class DockerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """`plugin "docker"`. endpoint: "" takes DOCKER_HOST, then the usual socket. nvidia_runtime: of tasks with NVIDIA GPUs."""

    endpoint: str = ""
    allow_privileged: bool = False
    allow_caps: list[str] = msgspec.field(default_factory=lambda: list(DEFAULT_CAPS))
    allow_runtimes: list[str] = msgspec.field(default_factory=lambda: ["runc", "nvidia"])
    nvidia_runtime: str = "nvidia"
    allowed_modes: AllowedModes = AllowedModes()
    auth: AuthPolicy = AuthPolicy()
    tls: TLSPolicy = TLSPolicy()
    volumes: VolumesPolicy = VolumesPolicy()
    gc: GCPolicy = GCPolicy()
    logging: LoggingConfig = LoggingConfig()
    extra_labels: list[str] = []
    image_pull_timeout: str = "5m"
    pull_activity_timeout: str = "2m"
    container_exists_attempts: int = 5
    pids_limit: int = 0
    oom_score_adj: int = 0
    disable_log_collection: bool = False


class TaskAuth(msgspec.Struct, frozen=True, kw_only=True):
    """`auth`: credentials for the image's registry."""

    username: str = ""
    password: str = ""
    email: str = ""
    server_address: str = ""

    def __repr__(self) -> str:
        return f"TaskAuth(username={self.username!r}, password=***)"


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """`devices`: a device node of the host."""

    host_path: str
    container_path: str = ""
    cgroup_permissions: str = "rwm"


class BindOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`bind_options` of a mount."""

    propagation: str = ""


class TmpfsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`tmpfs_options` of a mount; size in bytes."""

    size: int = 0
    mode: int = 0


class VolumeDriver(msgspec.Struct, frozen=True, kw_only=True):
    """`driver_config` of a volume."""

    name: str = ""
    options: dict[str, str] = {}


class VolumeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`volume_options` of a mount."""

    no_copy: bool = False
    labels: dict[str, str] = {}
    driver_config: VolumeDriver = VolumeDriver()


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """`mount`: bind, volume or tmpfs."""

    type: str = "volume"
    source: str = ""
    target: str
    readonly: bool = False
    bind_options: BindOptions = BindOptions()
    tmpfs_options: TmpfsOptions = TmpfsOptions()
    volume_options: VolumeOptions = VolumeOptions()


class Healthchecks(msgspec.Struct, frozen=True, kw_only=True):
    """`healthchecks`: the image's own."""

    disable: bool = False


class DockerTaskConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a job may say of a container. Sizes in MiB for memory, bytes elsewhere."""

    image: str
    advertise_ipv6_address: bool = False
    args: list[str] = []
    auth: TaskAuth | None = None
    auth_soft_fail: bool = False
    cap_add: list[str] = []
    cap_drop: list[str] = []
    cgroupns: str = ""
    command: str = ""
    container_exists_attempts: int = 0
    cpu_cfs_period: int = 100000
    cpu_hard_limit: bool = False
    cpuset_cpus: str = ""
    devices: list[Device] = []
    dns_options: list[str] = []
    dns_search_domains: list[str] = []
    dns_servers: list[str] = []
    entrypoint: list[str] = []
    extra_hosts: list[str] = []
    force_pull: bool = False
    group_add: list[str] = []
    healthchecks: Healthchecks = Healthchecks()
    hostname: str = ""
    image_pull_timeout: str = ""
    init: bool = False
    interactive: bool = False
    ipc_mode: str = ""
    ipv4_address: str = ""
    ipv6_address: str = ""
    isolation: str = ""
    labels: dict[str, str] = {}
    load: str = ""
    logging: LoggingConfig | None = None
    mac_address: str = ""
    memory_hard_limit: int = 0
    mount: list[Mount] = []
    mounts: list[Mount] = []
    network_aliases: list[str] = []
    network_mode: str = ""
    oom_score_adj: int | None = None
    pid_mode: str = ""
    pids_limit: int = 0
    port_map: dict[str, int] = {}
    ports: list[str] = []
    privileged: bool = False
    readonly_rootfs: bool = False
    runtime: str = ""
    security_opt: list[str] = []
    shm_size: int = 0
    storage_opt: dict[str, str] = {}
    sysctl: dict[str, str] = {}
    tmpfs: list[str] = []
    tty: bool = False
    ulimit: dict[str, str] = {}
    userns_mode: str = ""
    uts_mode: str = ""
    volume_driver: str = ""
    volumes: list[str] = []
    work_dir: str = ""
