from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_recordings import answered, complete, exchanges, sent, small_job, wire

from nomadpy.errors import InvalidRequestError
from nomadpy.jobspec.canonicalize import canonicalize
from nomadpy.jobspec.decode import decode
from nomadpy.models.job import Job

# What the state machine sets, not the canonical form.
SERVER_OWNED = {
    "CreateIndex",
    "ModifyIndex",
    "JobModifyIndex",
    "SubmitTime",
    "Status",
    "Stable",
    "Version",
}


def without_server_fields(job: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in job.items() if key not in SERVER_OWNED}


@pytest.mark.parametrize(
    ("scenario", "register", "read"),
    [
        ("jobs", "register", "read"),
        ("dispatch", "register", "read"),
        ("dispatch", "periodic-register", "periodic-read"),
    ],
)
def test_what_is_sent_becomes_what_a_real_server_stores(
    scenario: str, register: str, read: str
) -> None:
    got = wire(complete(sent(scenario, register)["Job"]))
    assert without_server_fields(got) == without_server_fields(answered(scenario, read))


@pytest.mark.parametrize(
    ("scenario", "read"),
    [
        ("jobs", "read"),
        ("batch", "job"),
        ("batch", "sysbatch-job"),
        ("dispatch", "child"),
        ("services_and_search", "job"),
        ("services_and_search", "job-scaled"),
    ],
)
def test_a_stored_job_is_canonical_already(scenario: str, read: str) -> None:
    stored = answered(scenario, read)
    assert without_server_fields(wire(complete(stored))) == without_server_fields(stored)


@pytest.mark.parametrize(
    "name", [n for n, e in exchanges("parse").items() if e["response"]["status"] == 200]
)
def test_canonicalizing_twice_changes_nothing(name: str) -> None:
    once = complete(answered("parse", name))
    assert complete(wire(once)) == once


def test_the_request_is_not_changed() -> None:
    raw = decode(sent("jobs", "register")["Job"], Job)
    before = copy.deepcopy(raw)
    canonicalize(raw)
    assert raw == before


@pytest.mark.parametrize(
    ("said", "count"),
    [({}, 1), ({"Count": 0}, 0), ({"Count": 7}, 7), ({"Scaling": {"Min": 3, "Max": 5}}, 3)],
)
def test_a_missing_count_is_one_and_zero_stays_zero(said: dict[str, Any], count: int) -> None:
    groups = complete(small_job(group=said)).task_groups
    assert groups is not None
    assert groups[0].count == count


def test_a_group_update_lies_over_the_job_update() -> None:
    job = complete(
        small_job(Update={"MaxParallel": 3, "Canary": 1}, group={"Update": {"Canary": 0}})
    )
    assert job.task_groups is not None
    update = job.task_groups[0].update
    assert update is not None
    assert (update.max_parallel, update.canary, update.stagger) == (3, 0, 30_000_000_000)
    assert job.update is not None
    assert (job.update.max_parallel, job.update.health_check) == (3, "")


def test_a_task_restart_policy_lies_over_the_group_policy() -> None:
    job = complete(
        small_job(
            group={"RestartPolicy": {"Attempts": 9, "Mode": "delay"}},
            task={"RestartPolicy": {"Attempts": 1}},
        )
    )
    assert job.task_groups is not None
    assert job.task_groups[0].tasks is not None
    policy = job.task_groups[0].tasks[0].restart_policy
    assert policy is not None
    assert (policy.attempts, policy.mode, policy.interval) == (1, "delay", 1_800_000_000_000)


def test_job_reschedule_and_migrate_are_merged_into_groups() -> None:
    job = complete(small_job(Reschedule={"Delay": 7_000_000_000}, Migrate={"MaxParallel": 4}))
    assert job.task_groups is not None
    group = job.task_groups[0]
    assert group.reschedule_policy is not None
    assert group.reschedule_policy.delay == 7_000_000_000
    assert group.reschedule_policy.unlimited
    assert group.migrate is not None
    assert group.migrate.max_parallel == 4
    assert job.reschedule is None
    assert job.migrate is None


def test_meta_is_not_flattened_from_job_to_task() -> None:
    job = complete(small_job(Meta={"a": "1"}))
    assert job.task_groups is not None
    assert job.task_groups[0].meta is None


def test_global_region_means_the_region_of_the_server() -> None:
    raw = decode(small_job(Region="global"), Job)
    assert canonicalize(raw, region="eu").region == "eu"
    assert canonicalize({**raw, "Region": "us"}, region="eu").region == "us"


def test_the_namespace_of_the_request_wins() -> None:
    raw = decode(small_job(Namespace="prod"), Job)
    assert canonicalize(raw).namespace == "prod"
    assert canonicalize(raw, namespace="dev").namespace == "dev"
    assert canonicalize({"ID": "x"}).namespace == "default"


def test_services_take_names_from_job_group_and_task() -> None:
    services = [{}, {"Name": "${JOB}-api", "PortLabel": "http", "Checks": [{"Type": "tcp"}]}]
    job = complete(
        small_job(group={"Services": services}, task={"Services": [{"Name": "${TASK}.${BASE}"}]})
    )
    assert job.task_groups is not None
    group = job.task_groups[0]
    assert [s.name for s in group.services or []] == ["web-group", "web-api"]
    assert group.tasks is not None
    assert [s.name for s in group.tasks[0].services or []] == ["task.web-group-task"]
    assert [c.name for s in group.services or [] for c in s.checks or []] == [
        'service: "web-api" check'
    ]


def test_nomad_services_with_checks_imply_constraints_once() -> None:
    service = {
        "Provider": "nomad",
        "PortLabel": "http",
        "Checks": [{"Type": "tcp", "Interval": 10**9, "Timeout": 10**9}],
    }
    job = complete(small_job(group={"Services": [service, {**service, "Name": "b"}]}))
    assert job.task_groups is not None
    constraints = job.task_groups[0].constraints or []
    assert [c.l_target for c in constraints] == [
        "${attr.nomad.service_discovery}",
        "${attr.nomad.version}",
    ]
    assert complete(wire(job)) == job


def test_signals_that_tasks_need_become_a_constraint() -> None:
    template = {
        "EmbeddedTmpl": "x",
        "DestPath": "local/x",
        "ChangeMode": "signal",
        "ChangeSignal": "sighup",
    }
    job = complete(small_job(task={"KillSignal": "SIGINT", "Templates": [template]}))
    assert job.task_groups is not None
    (constraint,) = job.task_groups[0].constraints or []
    assert (constraint.operand, constraint.r_target) == ("set_contains", "SIGHUP,SIGINT")


def test_scaling_policies_keep_their_id_over_versions() -> None:
    raw = decode(small_job(group={"Scaling": {"Min": 1, "Max": 3}}), Job)
    ids = iter(["first", "second"])
    old = canonicalize(raw, new_policy_id=lambda: next(ids))
    new = canonicalize(raw, previous=old, new_policy_id=lambda: next(ids))
    assert old.task_groups is not None
    assert new.task_groups is not None
    assert old.task_groups[0].scaling is not None
    assert old.task_groups[0].scaling.id == "first"
    assert new.task_groups[0].scaling == old.task_groups[0].scaling
    assert old.task_groups[0].scaling.target == {
        "Namespace": "default",
        "Job": "web",
        "Group": "group",
    }


def test_cores_replace_the_default_cpu_share() -> None:
    job = complete(small_job(task={"Resources": {"Cores": 2}}))
    assert job.task_groups is not None
    assert job.task_groups[0].tasks is not None
    resources = job.task_groups[0].tasks[0].resources
    assert resources is not None
    assert (resources.cpu, resources.cores, resources.memory_mb) == (0, 2, 300)


def test_the_default_identity_may_be_shaped_but_not_given_an_audience() -> None:
    identities = [
        {"Name": "default", "Env": True, "Audience": ["x"]},
        {"Name": "aws", "Audience": ["sts"]},
    ]
    job = complete(small_job(task={"Identities": identities}))
    assert job.task_groups is not None
    assert job.task_groups[0].tasks is not None
    task = job.task_groups[0].tasks[0]
    assert task.identity is not None
    assert task.identity.env
    assert task.identity.audience == ["nomadproject.io"]
    assert [one.name for one in task.identities or []] == ["aws"]


def test_a_value_of_the_wrong_kind_that_was_not_decoded_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="invalid job"):
        canonicalize({"ID": "x", "Priority": "high"})


BLOCKS = st.fixed_dictionaries(
    {},
    optional={
        "Type": st.sampled_from(["service", "batch", "system", "sysbatch", "other"]),
        "Priority": st.integers(0, 100),
        "Update": st.fixed_dictionaries(
            {}, optional={"MaxParallel": st.integers(0, 5), "AutoRevert": st.booleans()}
        ),
        "Migrate": st.fixed_dictionaries({}, optional={"MaxParallel": st.integers(0, 5)}),
        "Periodic": st.fixed_dictionaries(
            {}, optional={"Enabled": st.booleans(), "Spec": st.just("@daily")}
        ),
        "Meta": st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
        "Datacenters": st.lists(st.text(max_size=3), max_size=2),
    },
)


@given(BLOCKS)
def test_the_canonical_form_is_a_fixed_point(blocks: dict[str, Any]) -> None:
    once = complete(small_job(**blocks))
    assert complete(wire(once)) == once
