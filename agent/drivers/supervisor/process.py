"""Start a process in its own session, know it again later, and kill all that came of it.

Runs inside the supervisor and, when that has died, in the agent: imports must stay tiny.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import termios
import time

_PR_SET_CHILD_SUBREAPER = 36
_KILL_PASSES = 8
MARK = "NOMADPY_TASK"


class StartError(Exception):
    """The process could not be started; the text says which step failed and why."""


class Identity:
    """pid and kernel start time: together they never name another process until the next boot."""

    def __init__(self, pid: int, start_ticks: int) -> None:
        self.pid = pid
        self.start_ticks = start_ticks

    def lives(self) -> bool:
        """Whether this very process exists and is not a zombie."""
        facts = read_stat(self.pid)
        return facts is not None and facts.start_ticks == self.start_ticks and facts.state != "Z"


class Stat:
    """The part of /proc/PID/stat that we use."""

    __slots__ = ("pgid", "pid", "ppid", "sid", "start_ticks", "state")

    def __init__(self, pid: int, raw: str) -> None:
        # The second field is a name in parentheses that may hold spaces and parentheses.
        fields = raw[raw.rindex(")") + 2 :].split()
        self.pid = pid
        self.state = fields[0]
        self.ppid = int(fields[1])
        self.pgid = int(fields[2])
        self.sid = int(fields[3])
        self.start_ticks = int(fields[19])


def read_stat(pid: int) -> Stat | None:
    """What the kernel says of `pid`, or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return Stat(pid, file.read())
    except (OSError, ValueError):
        return None


def boot_id() -> str:
    """The kernel's name of this boot; "" where it has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def adopt_orphans() -> bool:
    """Become the parent of every descendant that loses its own; False when the kernel refuses."""
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


class Spec:
    """How a process is to run.

    uid < 0: as the supervisor itself. cgroups: folders of its own, killed and removed with it. join: folders of
    others, entered only. mark: names its descendants, see `family`.
    """

    def __init__(
        self,
        *,
        argv: list[str],
        path: str,
        env: dict[str, str],
        cwd: str,
        uid: int = -1,
        gid: int = -1,
        groups: list[int] | None = None,
        cgroups: list[str] | None = None,
        join: list[str] | None = None,
        oom_score_adj: int | None = None,
        mark: str = "",
    ) -> None:
        self.argv = argv
        self.path = path
        self.env = env
        self.cwd = cwd
        self.uid = uid
        self.gid = gid
        self.groups = groups or []
        self.cgroups = cgroups or []
        self.join = join or []
        self.oom_score_adj = oom_score_adj
        self.mark = mark


class Held:
    """A forked child that has not yet run its program, so that it can be written down first."""

    def __init__(self, pid: int, go: int, failure: int) -> None:
        facts = read_stat(pid)
        self.pid = pid
        self.start_ticks = facts.start_ticks if facts else 0
        self._go = go
        self._failure = failure

    def release(self) -> None:
        """Let it run its program. Raises StartError when that fails; the child is then gone and reaped."""
        os.write(self._go, b"g")
        os.close(self._go)
        with os.fdopen(self._failure, "rb") as pipe:
            text = pipe.read().decode("utf-8", "replace")
        if text:
            os.waitpid(self.pid, 0)
            raise StartError(text)

    def abandon(self) -> None:
        """Let it end without running anything."""
        os.close(self._go)
        os.close(self._failure)
        os.waitpid(self.pid, 0)


def fork(spec: Spec, stdio: tuple[int, int, int], *, tty: bool = False) -> Held:
    """Fork a child that waits for `release`; it leads its own session. The caller keeps its ends of `stdio`."""
    go_read, go_write = os.pipe()
    failure_read, failure_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go_write)
            os.close(failure_read)
            if os.read(go_read, 1) == b"g":
                _become(spec, stdio, tty=tty)
        except (OSError, ValueError, TypeError) as error:
            os.write(failure_write, str(error).encode("utf-8", "replace"))
        finally:
            os._exit(127)
    os.close(go_read)
    os.close(failure_write)
    return Held(pid, go_write, failure_read)


def _become(spec: Spec, stdio: tuple[int, int, int], *, tty: bool) -> None:
    """In the child: leave the supervisor's surroundings and run the program. Returns never, or raises."""
    os.setsid()
    for folder in (*spec.cgroups, *spec.join):
        _write_file(f"{folder}/cgroup.procs", "0")
    if spec.oom_score_adj is not None:
        _write_file("/proc/self/oom_score_adj", str(spec.oom_score_adj))
    for target, fd in enumerate(stdio):
        os.dup2(fd, target, inheritable=True)
    if tty:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if spec.uid >= 0:
        os.setgroups(spec.groups)
        os.setgid(spec.gid)
        os.setuid(spec.uid)
    os.umask(0o022)
    os.chdir(spec.cwd)
    # Ignored signals stay ignored across exec; Python ignores two, the supervisor some more.
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP) and not 32 <= number <= 33:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    env = {**spec.env, MARK: spec.mark} if spec.mark else spec.env
    os.execve(spec.path, spec.argv, env)  # noqa: S606 - no shell is the point


def make_cgroups(folders: list[str]) -> None:
    """Create the task's groups. Raises OSError."""
    for folder in folders:
        os.makedirs(folder, exist_ok=True)


def remove_cgroups(folders: list[str]) -> None:
    """Remove groups that hold no process any more; one that does stays."""
    for folder in folders:
        try:
            os.rmdir(folder)
        except OSError:
            continue


def cgroup_pids(folders: list[str]) -> list[int]:
    """Every process in any of `folders`."""
    found: set[int] = set()
    for folder in folders:
        try:
            with open(f"{folder}/cgroup.procs", encoding="ascii") as file:
                found.update(int(line) for line in file)
        except OSError:
            continue
    return sorted(found)


def family(leader: Identity, mark: str) -> list[int]:
    """Processes that came of `leader`: its session and group, their descendants, and whoever carries `mark`.

    A process that left the session and lost its parents is found by the mark in its first environment.
    """
    stats = {pid: facts for pid in _all_pids() if (facts := read_stat(pid)) is not None}
    # A leader's pid is not reused while its session or group has members, but it is afterwards.
    first = stats.get(leader.pid)
    reused = first is not None and first.start_ticks != leader.start_ticks
    members: set[int] = set()
    if not reused:
        members = {
            pid
            for pid, facts in stats.items()
            if leader.pid in (pid, facts.sid, facts.pgid)
            and facts.start_ticks >= leader.start_ticks
        }
    if mark:
        wanted = f"{MARK}={mark}".encode()
        members.update(pid for pid in stats if pid not in members and wanted in _environment(pid))
    grown = True
    while grown:
        grown = False
        for pid, facts in stats.items():
            if facts.ppid in members and pid not in members:
                members.add(pid)
                grown = True
    members.discard(os.getpid())
    return sorted(pid for pid in members if stats[pid].state != "Z")


def kill_family(leader: Identity, mark: str, cgroups: list[str]) -> int:
    """SIGKILL everything that came of `leader`, until none is left or it is hopeless; returns how many were hit."""
    hit: set[int] = set()
    for _ in range(_KILL_PASSES):
        members = members_of(leader, mark, cgroups)
        if not members:
            break
        for folder in cgroups:
            # Version 2 kills a whole group at once, which no fork can outrun.
            if os.path.exists(f"{folder}/cgroup.kill"):
                _write_quietly(f"{folder}/cgroup.kill", "1")
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
            hit.add(pid)
        time.sleep(0.002)  # noqa: TID251 - no event loop here; the killed need a moment to go
    return len(hit)


def members_of(leader: Identity, mark: str, cgroups: list[str]) -> list[int]:
    """The live processes of a task: what its groups hold, or what `family` finds where it has no group."""
    if cgroups:
        return [pid for pid in cgroup_pids(cgroups) if read_stat_alive(pid)]
    return family(leader, mark)


def read_stat_alive(pid: int) -> bool:
    """Whether `pid` exists and is not a zombie."""
    facts = read_stat(pid)
    return facts is not None and facts.state != "Z"


def oom_kills(cgroups: list[str]) -> int:
    """How often the kernel killed for want of memory in `cgroups`; 0 where it does not count."""
    total = 0
    for folder in cgroups:
        for name in ("memory.events", "memory.oom_control"):
            try:
                with open(f"{folder}/{name}", encoding="ascii") as file:
                    total += sum(int(v) for k, v in map(str.split, file) if k == "oom_kill")
            except (OSError, ValueError):
                continue
    return total


def unlink_if_there(path: str) -> None:
    """Remove a file; that it is gone already is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def _write_file(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(fd)


def _write_quietly(path: str, text: str) -> None:
    try:
        _write_file(path, text)
    except OSError:
        return
