"""Job commands: what they ask, what they show, how they end."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from faking import answering, recorded, run, sequence

EVAL = "3cd0e4da-fb23-4a8a-530e-3a0629b66d6a"
JOB = {
    "ID": "web",
    "Name": "web",
    "Type": "service",
    "Datacenters": ["dc1"],
    "TaskGroups": [
        {"Name": "group", "Count": 2, "Tasks": [{"Name": "task", "Driver": "raw_exec"}]}
    ],
}


@pytest.fixture
def job_file(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "web.json"
    path.write_text(json.dumps({"Job": JOB}))
    return str(path)


def status_routes() -> dict[str, Any]:
    return {
        "GET /v1/jobs": recorded("jobs", "list"),
        "GET /v1/job/web": recorded("jobs", "read"),
        "GET /v1/job/web/summary": recorded("jobs", "summary"),
        "GET /v1/job/web/evaluations": recorded("jobs", "evaluations"),
        "GET /v1/job/web/deployment": recorded("jobs", "deployment"),
        "GET /v1/job/web/allocations": recorded("jobs", "allocations"),
        "GET /v1/job/web/versions": recorded("jobs", "versions"),
    }


def follow_routes(**over: Any) -> dict[str, Any]:
    done = recorded("jobs", "eval-read")
    return {
        "PUT /v1/jobs": recorded("jobs", "register"),
        f"GET /v1/evaluation/{EVAL}": sequence({**done, "Status": "pending"}, {**done, **over}),
        f"GET /v1/evaluation/{EVAL}/allocations": recorded("jobs", "eval-allocations"),
        f"GET /v1/deployment/{done['DeploymentID']}": recorded("jobs", "deployment"),
    }


def test_the_list_is_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(status_routes(), monkeypatch):
        status, out, _ = run(capsys, "job", "status")
        assert status == 0
        head, row = out.splitlines()
        assert head.split() == ["ID", "Type", "Priority", "Status", "Submit", "Date"]
        assert row.split()[:4] == ["web", "service", "50", "running"]
        assert head.index("Type") == row.index("service")
        assert "Namespace" in run(capsys, "status", "-namespace", "*")[1]


def test_one_job_is_shown_with_all_its_parts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(status_routes(), monkeypatch) as agent:
        status, out, _ = run(capsys, "job", "status", "we")
        assert status == 0
        assert agent.of("GET /v1/jobs")[0][0] == {"prefix": "we"}
        for words in (
            "ID            = web",
            "Status        = running",
            "Latest Deployment",
            "Description = Deployment completed successfully",
            "Task Group  Desired  Placed  Healthy  Unhealthy  Progress Deadline",
            "Summary",
        ):
            assert words in out
        alloc = recorded("jobs", "allocations")[0]
        assert alloc["ID"][:8] in out
        assert alloc["ID"] not in out
        assert alloc["ID"] in run(capsys, "job", "status", "-verbose", "web")[1]
        assert json.loads(run(capsys, "job", "status", "-json", "web")[1])["ID"] == "web"
        assert "Allocations" not in run(capsys, "job", "status", "web", "-short")[1]


def test_a_job_that_waits_shows_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = status_routes() | {
        "GET /v1/job/web/evaluations": recorded("batch", "blocked-evaluations"),
        "GET /v1/job/web/deployment": None,
        "GET /v1/job/web/allocations": [],
    }
    with answering(routes, monkeypatch):
        _, out, _ = run(capsys, "job", "status", "web")
    assert "Placement Failure" in out
    assert '* Dimension "cpu" exhausted on 1 nodes' in out
    assert "No allocations placed" in out


@pytest.mark.parametrize("rows", [0, 2])
def test_no_job_or_several_are_an_error_that_helps(
    rows: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = recorded("jobs", "list")[0]
    found = [{**stub, "ID": f"web-{i}"} for i in range(rows)]
    with answering({"GET /v1/jobs": found}, monkeypatch):
        status, _, err = run(capsys, "job", "stop", "web")
    assert status == 1
    assert ("matched multiple jobs" if rows else 'No job(s) with prefix or ID "web"') in err


def test_run_follows_evaluation_and_deployment(
    job_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(follow_routes(), monkeypatch) as agent:
        status, out, _ = run(capsys, "run", job_file)
    assert status == 0
    body = agent.of("PUT /v1/jobs")[0][1]
    assert body["Job"]["ID"] == "web"
    assert body["Submission"]["Format"] == "json"
    for words in (
        'Monitoring evaluation "3cd0e4da"',
        'group "group"',
        'Evaluation status changed: "pending" -> "complete"',
        'finished with status "complete"',
        'Deployment successful: group "group" 2 of 2 healthy',
        'finished with status "successful"',
    ):
        assert words in out


def test_run_ends_with_2_when_not_all_is_placed(
    job_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = next(e for e in recorded("batch", "blocked-evaluations") if "FailedTGAllocs" in e)
    over = {"FailedTGAllocs": blocked["FailedTGAllocs"], "BlockedEval": EVAL}
    with answering(follow_routes(**over), monkeypatch):
        status, out, _ = run(capsys, "job", "run", job_file)
    assert status == 2
    assert "failed to place all allocations" in out
    assert "waiting for additional capacity" in out


def test_run_ends_with_1_when_the_deployment_fails(
    job_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = {
        **recorded("jobs", "deployment"),
        "Status": "failed",
        "StatusDescription": "Failed due to progress deadline",
    }
    routes = follow_routes()
    path = next(p for p in routes if "/deployment/" in p)
    with answering({**routes, path: failed}, monkeypatch):
        status, out, _ = run(capsys, "job", "run", job_file)
    assert status == 1
    assert "Failed due to progress deadline" in out


def test_run_detached_prints_the_evaluation(
    job_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(follow_routes(), monkeypatch) as agent:
        line = ["job", "run", "-detach", "-check-index", "9", "-namespace", "prod", job_file]
        status, out, _ = run(capsys, *line)
        assert (status, f"Evaluation ID: {EVAL}" in out) == (0, True)
        query, body = agent.of("PUT /v1/jobs")[0]
        assert (body["EnforceIndex"], body["JobModifyIndex"]) == (True, 9)
        assert query == {"namespace": "prod"}
        assert len(agent.asked) == 1


def test_run_says_when_the_index_does_not_hold(
    job_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = recorded("jobs", "register-check-index-stale")
    with answering({"PUT /v1/jobs": (500, text)}, monkeypatch):
        status, _, err = run(capsys, "job", "run", "-check-index=1", job_file)
    assert status == 1
    assert text in err
    assert "Plan it again" in err


def test_run_reads_yaml_and_standard_input(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    path = tmp_path / "web.yaml"
    path.write_text("id: web\ntype: service\nmeta: {a: b}\ntaskgroups:\n- name: g\n  count: 2\n")
    with answering(follow_routes(), monkeypatch) as agent:
        assert run(capsys, "job", "run", "-detach", str(path))[0] == 0
        body = agent.of("PUT /v1/jobs")[0][1]
        assert body["Job"]["TaskGroups"][0]["Count"] == 2
        assert body["Submission"]["Format"] == "yaml"
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(JOB)))
        assert run(capsys, "job", "run", "-detach", "-")[0] == 0
    status, out, _ = run(capsys, "job", "run", "-output", str(path))
    assert status == 0
    assert json.loads(out)["Job"]["ID"] == "web"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.json", None, "there is no file"),
        ("a.json", "{nope", "a.json"),
        ("a.json", "", "empty"),
        ("a.yaml", "a: [", "a.yaml"),
        ("a.json", "[]", "a job is a map"),
        ("a.json", '{"Job":{"Name":"x"}}', '"ID" is missing'),
        ("a.json", '{"Job":{"ID":"x","Priority":"high"}}', "cannot unmarshal string"),
        ("a.json", "\x00\x01", "a.json"),
    ],
)
def test_a_job_file_that_cannot_be_read_is_one_sentence(
    name: str,
    text: str | None,
    words: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    for command in ("run", "plan", "validate"):
        status, out, err = run(capsys, "job", command, str(path))
        assert (status, out) == (255 if command == "plan" else 1, "")
        assert words in err


def test_a_directory_and_binary_as_a_job_file(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot read" in run(capsys, "job", "run", str(tmp_path))[2]
    binary = tmp_path / "a.json"
    binary.write_bytes(b"\xff\xfe\xff")
    assert "not UTF-8" in run(capsys, "job", "run", str(binary))[2]


@pytest.mark.parametrize(("name", "status"), [("plan-new", 1), ("plan-change", 1)])
def test_plan_shows_the_difference_and_counts_changes(
    name: str,
    status: int,
    job_file: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = recorded("jobs", name)
    with answering({"PUT /v1/job/web/plan": plan}, monkeypatch) as agent:
        got, out, _ = run(capsys, "plan", job_file)
        assert got == status
        assert 'Job: "web"' in out
        assert 'Task Group: "group"' in out
        assert "- All tasks successfully allocated." in out
        assert f"nomadpy job run -check-index {plan['JobModifyIndex']} {job_file}" in out
        assert agent.asked[0][2]["Diff"] is True
        assert "Task Group" not in run(capsys, "plan", "-diff=false", job_file)[1]
        assert agent.asked[-1][2]["Diff"] is False


def test_the_marks_of_an_edited_job(
    job_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering({"PUT /v1/job/web/plan": recorded("jobs", "plan-change")}, monkeypatch):
        out = run(capsys, "plan", job_file)[1]
    assert '+/- Count: "2" => "3" (forces create)' in out
    assert '+ Env[GREETING]: "hello"' in out
    assert "forces create/destroy update" in out


def test_a_plan_without_changes_ends_with_0_and_an_error_with_255(
    job_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = recorded("jobs", "plan-change")
    updates = plan["Annotations"]["DesiredTGUpdates"]["group"]
    calm = dict.fromkeys(updates, 0) | {"Ignore": 2}
    plan["Annotations"]["DesiredTGUpdates"]["group"] = calm
    with answering({"PUT /v1/job/web/plan": plan}, monkeypatch) as agent:
        assert run(capsys, "plan", job_file)[0] == 0
        agent.routes["PUT /v1/job/web/plan"] = (500, "boom")
        status, _, err = run(capsys, "plan", job_file)
        assert (status, "boom" in err) == (255, True)
        assert run(capsys, "plan", "-nope", job_file)[0] == 255
        agent.routes["PUT /v1/job/web/plan"] = recorded("batch", "blocked-plan")
        status, out, _ = run(capsys, "plan", job_file)
        assert "WARNING: Failed to place all allocations." in out


def test_validate_tells_every_fault(
    job_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering({"PUT /v1/validate/job": recorded("jobs", "validate")}, monkeypatch) as agent:
        assert run(capsys, "validate", job_file)[:2] == (0, "Job validation successful\n")
        agent.routes["PUT /v1/validate/job"] = recorded("jobs", "validate-bad")
        status, _, err = run(capsys, "validate", job_file)
        assert status == 1
        assert "Missing job task groups" in err


def test_stop_asks_only_when_the_name_was_shortened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = {**status_routes(), "DELETE /v1/job/web": recorded("jobs", "stop")}
    with answering(routes, monkeypatch) as agent:
        status, out, _ = run(capsys, "stop", "-purge", "-detach", "web")
        assert (status, out.strip()) == (0, recorded("jobs", "stop")["EvalID"])
        assert agent.of("DELETE /v1/job/web")[0][0]["purge"] == "true"
        monkeypatch.setattr("builtins.input", lambda _: "n")
        assert "Cancelling" in run(capsys, "stop", "we")[1]
        assert len(agent.of("DELETE /v1/job/web")) == 1
        assert run(capsys, "stop", "-yes", "-detach", "we")[0] == 0


def test_scale_finds_the_only_group(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = {
        **status_routes(),
        "GET /v1/job/web/scale": recorded("jobs", "scale-status"),
        "PUT /v1/job/web/scale": recorded("jobs", "scale"),
    }
    with answering(routes, monkeypatch) as agent:
        assert run(capsys, "job", "scale", "-detach", "web", "4")[0] == 0
        body = agent.of("PUT /v1/job/web/scale")[0][1]
        assert (body["Count"], body["Target"]["Group"]) == (4, "group")
        assert run(capsys, "job", "scale", "web", "group", "many")[0] == 1


def test_history_inspect_and_revert(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = {**status_routes(), "PUT /v1/job/web/revert": recorded("jobs", "revert")}
    with answering(routes, monkeypatch) as agent:
        assert "Version     = 0" in run(capsys, "job", "history", "web")[1]
        assert json.loads(run(capsys, "inspect", "web")[1])["Job"]["ID"] == "web"
        status, _, err = run(capsys, "inspect", "-version", "9", "web")
        assert (status, "no version 9" in err) == (1, True)
        assert run(capsys, "job", "revert", "-detach", "web", "0")[0] == 0
        assert agent.of("PUT /v1/job/web/revert")[0][1]["JobVersion"] == 0


def test_a_job_id_with_a_slash_is_one_part_of_the_path(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = {**recorded("jobs", "list")[0], "ID": "etl/one two"}
    routes = {"GET /v1/jobs": [stub], "GET /v1/job/etl%2Fone%20two": recorded("jobs", "read")}
    with answering(routes, monkeypatch):
        assert run(capsys, "job", "inspect", "etl/one two")[0] == 0
