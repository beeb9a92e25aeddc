"""Where control groups are, from the kernel's tables."""

from __future__ import annotations

from pathlib import Path

from agent.drivers.cgroups import Hierarchies, detect, overrides, supervisor_folder, task_folders


def tables(folder: Path, mounts: str, membership: str) -> Hierarchies:
    (folder / "mounts").write_text(mounts)
    (folder / "cgroup").write_text(membership)
    return detect(str(folder / "mounts"), str(folder / "cgroup"))


def test_version_1_hybrid_and_version_2_are_told_apart(tmp_path: Path) -> None:
    v1 = "cgroup /c/memory cgroup rw,memory 0 0\ncgroup /c/freezer cgroup rw,freezer 0 0\n"
    v2 = "cgroup2 /c cgroup2 rw,nsdelegate 0 0\n"
    assert tables(tmp_path, v1, "4:memory:/own\n").version == "1"
    assert tables(tmp_path, v1 + v2.replace("/c ", "/c/unified "), "0::/\n").version == "1"
    assert tables(tmp_path, v2, "0::/system.slice/x\n").version == "2"
    assert tables(tmp_path, "", "").version == ""
    assert detect("/nonexistent", "/nonexistent") == Hierarchies()


def test_folders_of_a_task_lie_where_it_can_be_tracked(tmp_path: Path) -> None:
    for name in ("memory/own", "freezer", "unified"):
        (tmp_path / name).mkdir(parents=True)
    legacy = {"memory": str(tmp_path / "memory"), "freezer": str(tmp_path / "freezer")}
    v1 = Hierarchies(legacy=legacy, own={"memory": "/own"})
    assert task_folders(v1, "nomad.slice", "t") == [
        f"{tmp_path}/freezer/nomad.slice/t",
        f"{tmp_path}/memory/own/nomad.slice/t",
    ]
    both = Hierarchies(unified=str(tmp_path / "unified"), legacy=legacy)
    assert task_folders(both, "/nomad", "t")[0] == f"{tmp_path}/unified/nomad/t"
    assert supervisor_folder(both, "nomad") == ""
    v2 = Hierarchies(unified=str(tmp_path / "unified"))
    assert supervisor_folder(v2, "nomad") == f"{tmp_path}/unified/nomad/supervisors"
    assert task_folders(Hierarchies(unified="/proc/nowhere"), "p", "t") == []
    assert task_folders(Hierarchies(), "p", "t") == []


def test_an_override_names_a_folder_of_a_mounted_hierarchy_only() -> None:
    found = Hierarchies(unified="/c/u", legacy={"memory": "/c/m"})
    assert overrides(found, "custom.slice/x", []) == ["/c/u/custom.slice/x"]
    assert overrides(found, "", [("memory", "app"), ("pids", "app")]) == ["/c/m/app"]
