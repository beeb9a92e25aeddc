from __future__ import annotations

from typing import Any

from nomadpy.jobspec.canonicalize import canonicalize
from nomadpy.server.not_yet import without_effect


def notes(
    group: dict[str, Any] | None = None, task: dict[str, Any] | None = None, **job: Any
) -> list[str]:
    task = {"Name": "t", "Driver": "raw_exec", "Config": {"command": "/bin/true"}, **(task or {})}
    raw = {
        "ID": "j",
        "Type": "batch",
        "TaskGroups": [{"Name": "g", "Tasks": [task], **(group or {})}],
        **job,
    }
    return without_effect(canonicalize(raw))


def test_a_job_that_is_acted_on_wholly_is_not_warned_of() -> None:
    assert notes() == []
    assert notes(Type="service", group={"Networks": [{"DynamicPorts": [{"Label": "http"}]}]}) == []


def test_what_is_only_stored_is_told_with_its_place() -> None:
    assert "nothing launches it" in notes(Periodic={"Enabled": True, "Spec": "@daily"})[0]
    assert "dispatching" in notes(ParameterizedJob={})[0]
    (note,) = notes({"Services": [{"Name": "web", "Provider": "nomad"}]})
    assert note.startswith('group "g": services are not registered')
    update = {"Canary": 1, "MaxParallel": 1, "AutoPromote": True}
    (note,) = notes({"Update": update}, Type="service")
    assert "auto_promote has no effect" in note
    (note,) = notes({"Networks": [{"Mode": "bridge"}]})
    assert "cannot be placed" in note
    (note,) = notes(task={"Templates": [{"EmbeddedTmpl": "x", "DestPath": "local/f"}]})
    assert note.startswith('group "g": task "t": templates are not supported')
