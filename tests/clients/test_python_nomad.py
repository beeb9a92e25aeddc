"""python-nomad works against a development agent without TLS, and against a client node with a client certificate."""

from __future__ import annotations

import base64
import json
from typing import Any

import nomad
import pytest
from nomad.api import exceptions
from real_cluster import SECOND, Json, RealCluster, group, job, shell

from nomadpy.demo.client import ApiClient, until
from nomadpy.demo.cluster import HOST

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

TALK = "echo one; echo two; echo oops >&2; exec sleep 600"


@pytest.fixture(scope="module", params=["http", "https"])
def api(request: pytest.FixtureRequest) -> nomad.Nomad:
    """The library's client: of the dev agent in plain HTTP, or of a client node with certificates both ways."""
    if request.param == "http":
        dev: ApiClient = request.getfixturevalue("dev_agent")
        host, _, port = dev.address.rpartition(":")
        return nomad.Nomad(host=host, port=int(port), timeout=15)
    cluster: RealCluster = request.getfixturevalue("tls_cluster")
    folder = cluster.certificates
    return nomad.Nomad(
        host=HOST,
        port=cluster.clients[0].http_port,
        secure=True,
        timeout=15,
        verify=str(folder / "nomad-agent-ca.pem"),  # type: ignore[arg-type]  # requests takes a path here
        cert=(str(folder / "global-cli-nomad.pem"), str(folder / "global-cli-nomad-key.pem")),
    )


def running(api: nomad.Nomad, job_id: str, count: int = 1) -> list[Json]:
    """The job's running allocations, when there are `count`."""

    def look() -> list[Json] | None:
        found = [a for a in api.job.get_allocations(job_id) if a["ClientStatus"] == "running"]
        return found if len(found) == count else None

    found: list[Json] = until(look, seconds=30, what=f"{count} running allocations of {job_id}")
    return found


def run(api: nomad.Nomad, job_id: str, script: str = TALK, **fields: Any) -> Json:
    """Register a job of one task and return its running allocation."""
    api.job.register_job(job_id, {"Job": job(job_id, group(shell(script)), **fields)})
    return running(api, job_id)[0]


def test_jobs_are_registered_read_planned_updated_and_purged(api: nomad.Nomad) -> None:
    wanted = {"Job": job("life", group(shell(TALK)))}
    assert api.validate.validate_job(wanted).json()["ValidationErrors"] is None
    plan = api.job.plan_job("life", wanted, diff=True)
    assert plan["Diff"]["Type"] == "Added"
    assert plan["Annotations"]["DesiredTGUpdates"]["group"]["Place"] == 1
    assert "life" not in api.jobs
    registered = api.jobs.register_job(wanted)
    assert registered["EvalID"]
    running(api, "life")
    assert "life" in api.jobs
    assert "life" in api.job
    assert api.job["life"]["Type"] == "service"
    assert len(api.jobs) >= 1
    assert "life" in [j["ID"] for j in api.jobs]
    assert [j["ID"] for j in api.jobs.get_jobs(prefix="lif")] == ["life"]
    assert api.job.get_summary("life")["Summary"]["group"]["Running"] == 1
    wanted["Job"]["Meta"] = {"team": "blue"}
    plan = api.job.plan_job("life", wanted, diff=True)
    assert plan["Diff"]["Type"] == "Edited"
    again = api.job.register_job("life", wanted)
    assert again["JobModifyIndex"] > registered["JobModifyIndex"]
    versions = api.job.get_versions("life")["Versions"]
    assert [v["Version"] for v in versions] == [1, 0]
    assert api.job.revert_job("life", 0)["EvalID"]
    assert api.job.get_job("life")["Version"] == 2
    assert api.job.stable_job("life", 2, True)["Index"] > 0
    assert api.job.evaluate_job("life")["EvalID"]
    assert api.job.deregister_job("life")["EvalID"]
    assert api.job.get_job("life")["Stop"] is True
    api.job.deregister_job("life", purge=True)
    assert "life" not in api.job
    with pytest.raises(exceptions.URLNotFoundNomadException):
        api.job.get_job("life")


def test_a_job_that_cannot_be_is_refused_with_a_reason(api: nomad.Nomad) -> None:
    with pytest.raises(exceptions.BadRequestNomadException):
        api.jobs.register_job({"Job": {"Name": "no id"}})
    with pytest.raises(exceptions.BaseNomadException, match=r"(?i)missing job task groups"):
        api.jobs.register_job({"Job": {"ID": "x", "Name": "x", "Datacenters": ["dc1"]}})
    with pytest.raises(exceptions.URLNotFoundNomadException):
        api.job.get_job("never-registered")


def test_evaluations_allocations_and_deployments_are_found_from_a_job(api: nomad.Nomad) -> None:
    alloc = run(api, "linked")
    evaluations = api.job.get_evaluations("linked")
    ids = {e["ID"] for e in evaluations}
    assert alloc["EvalID"] in ids
    assert alloc["EvalID"] in api.evaluations
    assert api.evaluation[alloc["EvalID"]]["JobID"] == "linked"
    assert [a["ID"] for a in api.evaluation.get_allocations(alloc["EvalID"])] == [alloc["ID"]]
    assert alloc["ID"] in {a["ID"] for a in api.allocations}
    assert [a["ID"] for a in api.allocations.get_allocations(prefix=alloc["ID"][:8])] == [
        alloc["ID"]
    ]
    assert api.allocation[alloc["ID"]]["Job"]["ID"] == "linked"
    deployment = api.job.get_deployment("linked")
    assert [d["ID"] for d in api.job.get_deployments("linked")] == [deployment["ID"]]
    assert deployment["ID"] in api.deployments
    assert [a["ID"] for a in api.deployment.get_deployment_allocations(deployment["ID"])] == [
        alloc["ID"]
    ]
    until(
        lambda: api.deployment[deployment["ID"]]["Status"] == "successful",
        seconds=15,
        what="the deployment",
    )
    with pytest.raises(exceptions.BaseNomadException):
        api.deployment.fail_deployment(deployment["ID"])
    stopped = api.allocation.stop_allocation(alloc["ID"])
    assert stopped["EvalID"]
    until(
        lambda: running(api, "linked")[0]["ID"] != alloc["ID"], seconds=20, what="the replacement"
    )
    api.job.deregister_job("linked", purge=True)


def test_a_running_deployment_is_paused_and_failed(api: nomad.Nomad) -> None:
    slow = group(
        shell(TALK),
        Update={
            "MinHealthyTime": 60 * SECOND,
            "HealthCheck": "task_states",
            "HealthyDeadline": 120 * SECOND,
            "ProgressDeadline": 300 * SECOND,
        },
    )
    api.jobs.register_job({"Job": job("slow", slow)})
    running(api, "slow")
    deployment = api.job.get_deployment("slow")["ID"]
    api.deployment.pause_deployment(deployment, True)
    assert api.deployment.get_deployment(deployment)["Status"] == "paused"
    api.deployment.pause_deployment(deployment, False)
    assert api.deployment.get_deployment(deployment)["Status"] == "running"
    api.deployment.fail_deployment(deployment)
    assert api.deployment.get_deployment(deployment)["Status"] == "failed"
    api.job.deregister_job("slow", purge=True)


def test_files_logs_and_usage_of_an_allocation_are_read(api: nomad.Nomad) -> None:
    alloc = run(api, "talker")
    alloc_id = alloc["ID"]
    client = api.client
    until(
        lambda: "two" in client.stream_logs.stream(alloc_id, "main", "stdout", plain=True),
        seconds=15,
        what="the log",
    )
    assert client.stream_logs.stream(alloc_id, "main", "stdout", plain=True) == "one\ntwo\n"
    assert client.stream_logs.stream(alloc_id, "main", "stderr", plain=True) == "oops\n"
    assert (
        client.stream_logs.stream(alloc_id, "main", "stdout", offset=4, origin="end", plain=True)
        == "two\n"
    )
    framed = json.loads(client.stream_logs.stream(alloc_id, "main", "stdout"))
    assert base64.b64decode(framed["Data"]) == b"one\ntwo\n"
    path = "alloc/logs/main.stdout.0"
    names = {f["Name"] for f in client.ls.list_files(alloc_id, "alloc/logs")}
    assert {"main.stdout.0", "main.stderr.0"} <= names
    assert client.stat.stat_file(alloc_id, path)["Size"] == 8
    assert client.cat.read_file(alloc_id, path) == "one\ntwo\n"
    assert client.read_at.read_file_offset(alloc_id, 4, 3, path) == "two"
    with pytest.raises(exceptions.BaseNomadException):
        client.cat.read_file(alloc_id, "../../../etc/passwd")
    usage = client.allocation.read_allocation_stats(alloc_id)
    assert usage["Tasks"]["main"]["Pids"]
    stats = client.stats.read_stats(alloc["NodeID"])
    assert stats["Memory"]["Total"] > 0
    client.allocation.signal_allocation(alloc_id, "SIGCONT", "main")
    client.allocation.restart_allocation(alloc_id)
    until(
        lambda: (
            api.allocation[alloc_id]["TaskStates"]["main"]["Events"][-1]["Type"] == "Started"
            and client.cat.read_file(alloc_id, path).count("one") == 2
        ),
        seconds=20,
        what="the restart",
    )
    api.job.deregister_job("talker")
    until(
        lambda: api.allocation[alloc_id]["ClientStatus"] == "complete", seconds=20, what="the end"
    )
    client.gc_allocation.garbage_collect(alloc_id)
    with pytest.raises(exceptions.BaseNomadException):
        client.ls.list_files(alloc_id, "/")


def test_nodes_are_listed_made_ineligible_drained_and_brought_back(api: nomad.Nomad) -> None:
    (row,) = api.nodes.get_nodes()
    assert row["Name"] in api.nodes
    assert api.nodes[row["Name"]]["ID"] == row["ID"]
    node = api.node.get_node(row["ID"])
    assert (node["Status"], node["SecretID"]) == ("ready", "")
    assert api.nodes.get_nodes(resources=True)[0]["NodeResources"]["Cpu"]["CpuShares"] > 0
    alloc = run(api, "guest")
    assert alloc["ID"] in {a["ID"] for a in api.node.get_allocations(row["ID"])}
    api.node.eligible_node(row["ID"], ineligible=True)
    assert api.node[row["ID"]]["SchedulingEligibility"] == "ineligible"
    api.node.eligible_node(row["ID"], eligible=True)
    api.node.drain_node_with_spec(row["ID"], {"Deadline": -1, "IgnoreSystemJobs": False})
    until(
        lambda: api.allocation[alloc["ID"]]["ClientStatus"] == "complete",
        seconds=20,
        what="the drain",
    )
    api.node.drain_node_with_spec(row["ID"], None, mark_eligible=True)
    until(
        lambda: api.node[row["ID"]]["SchedulingEligibility"] == "eligible",
        seconds=10,
        what="eligible",
    )
    running(api, "guest")
    assert api.node.evaluate_node(row["ID"])["EvalIDs"]
    api.job.deregister_job("guest", purge=True)


def test_the_agent_the_status_the_operator_and_the_system_answer(api: nomad.Nomad) -> None:
    me = api.agent.get_agent()
    assert me["config"]["Version"]["Version"]
    assert [m["Status"] for m in api.agent.get_members()["Members"]] == ["alive"]
    assert api.status.leader.get_leader() in api.status.peers
    assert api.regions.get_regions() == ["global"]
    assert "global" in api.regions
    (server,) = api.operator.get_configuration()["Servers"]
    assert (server["Leader"], server["Voter"]) == (True, True)
    assert "default" in {n["Name"] for n in api.namespaces.get_namespaces()}
    assert api.namespace.get_namespace("default")["Name"] == "default"
    assert api.metrics.get_metrics()["Gauges"]
    assert api.system.initiate_garbage_collection()
    assert api.system.reconcile_summaries()


def test_a_garbage_collection_removes_what_is_over(api: nomad.Nomad) -> None:
    api.jobs.register_job({"Job": job("over", group(shell("true")), kind="batch")})
    until(
        lambda: api.job.get_job("over")["Status"] == "dead", seconds=20, what="the end of the job"
    )
    api.system.initiate_garbage_collection()
    until(lambda: "over" not in api.job, seconds=10, what="the collection")


def test_ids_are_found_by_their_beginning(api: nomad.Nomad) -> None:
    alloc = run(api, "findable")
    found = api.search.search("find", "jobs")
    assert found["Matches"]["jobs"] == ["findable"]
    assert api.search.search(alloc["ID"][:8], "allocs")["Matches"]["allocs"] == [alloc["ID"]]
    everything = api.search.search(alloc["NodeID"][:8], "all")
    assert everything["Matches"]["nodes"] == [alloc["NodeID"]]
    api.job.deregister_job("findable", purge=True)


def test_without_a_certificate_the_library_is_turned_away(tls_cluster: RealCluster) -> None:
    nobody = nomad.Nomad(
        host=HOST,
        port=tls_cluster.clients[0].http_port,
        secure=True,
        verify=str(tls_cluster.certificates / "nomad-agent-ca.pem"),  # type: ignore[arg-type]
    )
    with pytest.raises(exceptions.BaseNomadException, match=r"(?i)certificate|reset|aborted"):
        nobody.jobs.get_jobs()


def test_variables_are_written_with_check_and_set_read_and_deleted(api: nomad.Nomad) -> None:
    path = "shop/till"
    made = api.variable.create_variable(path, {"Path": path, "Items": {"pin": "1234"}}, cas=0)
    assert made["Items"] == {"pin": "1234"}
    assert path in api.variable
    with pytest.raises(exceptions.VariableConflict):
        api.variable.create_variable(path, {"Path": path, "Items": {"pin": "0"}}, cas=0)
    index = made["ModifyIndex"]
    api.variable.create_variable(path, {"Path": path, "Items": {"pin": "5"}}, cas=index)
    assert api.variable[path]["Items"] == {"pin": "5"}
    (row,) = api.variables.get_variables(prefix="shop/")
    assert (row["Path"], "Items" in row) == (path, False)
    assert path in api.variables
    with pytest.raises(exceptions.VariableConflict):
        api.variable.delete_variable(path, cas=index)
    api.variable.delete_variable(path)
    assert path not in api.variable
