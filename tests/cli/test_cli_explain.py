"""What `job explain` prints."""

from __future__ import annotations

from typing import Any

from nomadpy.cli.explain import lines


def a_group(**fields: Any) -> dict[str, Any]:
    return {
        "Name": "web",
        "Summary": "1 of 1 cannot be placed: none of 2 nodes will do",
        "Suggestions": ['no node has driver "dokcer"; available: docker. Did you mean "docker"?'],
        "Missing": 1,
        "TotalNodes": 2,
        "Tally": {"driver": 2},
        "Nodes": [
            {
                "NodeID": "0123456789",
                "NodeName": "n1",
                "Fits": False,
                "Obstacles": [{"Text": 'it has no driver "dokcer"'}],
            }
        ],
        "LeftOut": 1,
        "Allocs": None,
        **fields,
    }


def a_job(*groups: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "JobID": "site",
        "JobType": "service",
        "JobVersion": 3,
        "Namespace": "default",
        "EvalID": "",
        "WaitingEval": "",
        "Groups": list(groups),
        **fields,
    }


def test_a_group_that_waits_is_told_with_what_to_do_and_the_nearest_nodes() -> None:
    text = lines(a_job(a_group(), WaitingEval="abcdefghijk"), 8, 5)
    assert text == [
        'Job "site" (service, version 3, namespace "default")',
        "",
        'Group "web": 1 of 1 cannot be placed: none of 2 nodes will do.',
        "",
        "  What to do:",
        '  1. no node has driver "dokcer"; available: docker. Did you mean "docker"?',
        "",
        "  What stands in the way, of 2 nodes:",
        "    driver: 2 nodes",
        "",
        "  The nodes, the nearest first:",
        "    n1 (01234567): one thing in the way",
        '      - it has no driver "dokcer"',
        "    and 1 more (-nodes lists them)",
        "",
        'Evaluation "abcdefgh" waits, and places what is missing as soon as a node will do.',
    ]


def test_what_is_placed_is_told_with_its_scores() -> None:
    alloc = {
        "AllocID": "0123456789",
        "Name": "site.web[0]",
        "NodeName": "n1",
        "ClientStatus": "running",
        "Score": 0.5,
        "Scores": {"binpack": 0.5},
        "RunnerUp": "n2",
        "RunnerUpScore": 0.25,
    }
    group = a_group(
        Missing=0, Suggestions=None, Summary="all 1 of 1 are placed", Nodes=[], Allocs=[alloc]
    )
    text = lines(a_job(group), 8, 5)
    assert text[2] == 'Group "web": all 1 of 1 are placed.'
    assert "binpack 0.500" in text[-1]
    assert "n2 0.250" in text[-1]


def test_an_evaluation_is_told_first() -> None:
    text = lines(
        a_job(EvalID="0123456789", EvalStatus="complete", EvalTriggeredBy="job-register"), 8, 5
    )
    assert text[0] == (
        'Evaluation "01234567" (job-register) is complete. Its job as it stands now:'
    )
