from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_recordings import answered, complete, sent, small_job, wire

from nomadpy.errors import InvalidRequestError
from nomadpy.jobspec.annotate import annotate
from nomadpy.jobspec.diff import diff_jobs
from nomadpy.models.annotations import DesiredUpdates, PlanAnnotations
from nomadpy.models.diff import JobDiff, ObjectDiff
from nomadpy.models.job import Job


@pytest.mark.parametrize(("name", "old"), [("plan-new", None), ("plan-change", "register")])
def test_a_plan_shows_the_difference_as_a_real_server_does(name: str, old: str | None) -> None:
    before = complete(sent("jobs", old)["Job"]) if old else None
    answer = answered("jobs", name)
    annotations = msgspec.convert(answer["Annotations"], PlanAnnotations)
    diff = annotate(diff_jobs(before, complete(sent("jobs", name)["Job"])), annotations)
    assert wire(diff) == answer["Diff"]


def test_versions_show_the_difference_as_a_real_server_does() -> None:
    answer = answered("jobs", "versions-after")
    new, old = msgspec.convert(answer["Versions"], list[Job])
    assert wire([diff_jobs(old, new)]) == answer["Diffs"]


def difference(old: dict[str, Any], new: dict[str, Any]) -> JobDiff:
    return diff_jobs(complete(small_job(**old)), complete(small_job(**new)))


def group_objects(diff: JobDiff) -> list[ObjectDiff]:
    assert diff.task_groups is not None
    return diff.task_groups[0].objects or []


def test_equal_jobs_have_no_difference_at_any_level() -> None:
    diff = difference({}, {})
    assert (diff.type, diff.fields, diff.objects) == ("None", None, None)
    assert diff.task_groups is not None
    assert [group.type for group in diff.task_groups] == ["None"]


def test_what_every_registration_changes_is_no_difference() -> None:
    job = complete(small_job())
    later = msgspec.structs.replace(
        job, version=3, modify_index=9, submit_time=5, status="running", stable=True
    )
    assert diff_jobs(job, later).type == "None"


def test_a_removed_job_is_deleted_with_its_old_values() -> None:
    diff = diff_jobs(complete(small_job()), None)
    assert diff.type == "Deleted"
    assert {f.name: f.old for f in diff.fields or []}["Priority"] == "50"


def test_jobs_of_different_ids_cannot_be_compared() -> None:
    with pytest.raises(InvalidRequestError, match="different IDs"):
        difference({}, {"ID": "other"})


def test_an_edited_object_shows_its_equal_fields_for_context() -> None:
    (restart,) = group_objects(difference({}, {"group": {"RestartPolicy": {"Attempts": 5}}}))
    assert (restart.type, restart.name) == ("Edited", "RestartPolicy")
    assert {f.name: f.type for f in restart.fields or []} == {
        "Attempts": "Edited",
        "Delay": "None",
        "Interval": "None",
        "Mode": "None",
        "RenderTemplates": "None",
    }


def test_constraints_are_a_set() -> None:
    one = {"LTarget": "a", "Operand": "=", "RTarget": "1"}
    two = {"LTarget": "a", "Operand": "=", "RTarget": "2"}
    assert difference({"Constraints": [one, two]}, {"Constraints": [two, one]}).type == "None"
    diff = difference({"Constraints": [one]}, {"Constraints": [two]})
    assert [(o.type, o.name) for o in diff.objects or []] == [
        ("Added", "Constraint"),
        ("Deleted", "Constraint"),
    ]


def test_ports_and_services_are_told_by_name() -> None:
    network = {"DynamicPorts": [{"Label": "http"}]}
    service = {"Name": "api", "PortLabel": "http", "Tags": ["a", "b"]}
    old = {"group": {"Networks": [network], "Services": [service]}}
    new = {
        "group": {
            "Networks": [{**network, "ReservedPorts": [{"Label": "admin", "Value": 9000}]}],
            "Services": [{**service, "Tags": ["b", "c"], "PortLabel": "admin"}],
        }
    }
    objects = {f"{o.type} {o.name}": o for o in group_objects(difference(old, new))}
    assert list(objects) == ["Added Network", "Deleted Network", "Edited Service"]
    assert {o.name for o in objects["Added Network"].objects or []} == {
        "Static Port",
        "Dynamic Port",
    }
    (tags,) = objects["Edited Service"].objects or []
    assert [(f.type, f.old, f.new) for f in tags.fields or []] == [
        ("Added", "", "c"),
        ("Deleted", "a", ""),
        ("None", "b", "b"),
    ]
    edited = [f for f in objects["Edited Service"].fields or [] if f.type == "Edited"]
    assert [(f.name, f.old, f.new) for f in edited] == [("PortLabel", "http", "admin")]


def test_a_driver_config_is_flattened_to_paths() -> None:
    config = {"image": "a", "args": ["x", "y"], "mount": [{"type": "bind", "readonly": True}]}
    diff = difference({"task": {"Config": config}}, {"task": {"Config": {**config, "args": ["x"]}}})
    assert diff.task_groups is not None
    assert diff.task_groups[0].tasks is not None
    (changed,) = diff.task_groups[0].tasks[0].objects or []
    fields = {f.name: f.type for f in changed.fields or []}
    assert fields["args[1]"] == "Deleted"
    assert fields["mount[0][readonly]"] == "None"


@pytest.mark.parametrize(
    ("new", "note"),
    [
        ({"task": {"Driver": "docker"}}, "forces create/destroy update"),
        ({"task": {"Env": {"A": "1"}}}, "forces create/destroy update"),
        ({"task": {"KillTimeout": 1}}, "forces in-place update"),
        ({"task": {"LogConfig": {"MaxFiles": 3}}}, "forces in-place update"),
    ],
)
def test_a_task_says_how_its_change_is_made(new: dict[str, Any], note: str) -> None:
    diff = annotate(difference({}, new), None)
    assert diff.task_groups is not None
    assert diff.task_groups[0].tasks is not None
    assert diff.task_groups[0].tasks[0].annotations == [note]


def test_counts_of_a_group_are_annotated() -> None:
    desired = PlanAnnotations(
        desired_tg_updates={"group": DesiredUpdates(stop=2, ignore=1, destructive_update=3)}
    )
    diff = annotate(difference({"group": {"Count": 3}}, {"group": {"Count": 1}}), desired)
    assert diff.task_groups is not None
    group = diff.task_groups[0]
    assert group.updates == {"create/destroy update": 3, "destroy": 2, "ignore": 1}
    assert [f.annotations for f in group.fields or []] == [["forces destroy"]]


SPECS = st.fixed_dictionaries(
    {},
    optional={
        "Priority": st.integers(1, 100),
        "Meta": st.dictionaries(st.sampled_from("abc"), st.text(max_size=2), max_size=2),
        "Datacenters": st.lists(st.sampled_from(["a", "b", "c"]), max_size=2, unique=True),
        "group": st.fixed_dictionaries(
            {},
            optional={
                "Count": st.integers(0, 3),
                "Spreads": st.lists(
                    st.fixed_dictionaries({"Attribute": st.sampled_from("xy")}), max_size=1
                ),
            },
        ),
        "task": st.fixed_dictionaries(
            {},
            optional={
                "Env": st.dictionaries(st.sampled_from("AB"), st.text(max_size=2), max_size=2),
                "Config": st.dictionaries(
                    st.sampled_from("ab"),
                    st.integers() | st.lists(st.integers(), max_size=2),
                    max_size=2,
                ),
            },
        ),
    },
)


@given(SPECS, SPECS)
def test_there_is_a_difference_exactly_when_what_the_user_wrote_differs(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    before, after = complete(small_job(**old)), complete(small_job(**new))
    forward, back = diff_jobs(before, after), diff_jobs(after, before)
    assert (forward.type == "None") == (back.type == "None")
    if before == after:
        assert forward.type == "None"
