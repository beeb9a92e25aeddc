from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_recordings import answered, complete, exchanges, sent, small_job

from nomadpy.errors import ValidationError
from nomadpy.jobspec.faults import format_errors, format_warnings
from nomadpy.jobspec.patterns import compile_regexp, regexp_fault, version_constraint_fault
from nomadpy.jobspec.validate import check, validate, warnings

# Rules that need state are not checked here.
STATEFUL = {"unknown-namespace", "unknown-pool"}
REFUSED = [
    name
    for name, exchange in exchanges("job_errors").items()
    if exchange["response"]["status"] == 500 and name not in STATEFUL
]


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_job_is_refused_word_for_word_as_by_a_real_server(name: str) -> None:
    with pytest.raises(ValidationError) as refused:
        check(complete(sent("job_errors", name)["Job"]))
    assert refused.value.message == answered("job_errors", name)
    assert refused.value.status == 500


@pytest.mark.parametrize(
    ("scenario", "name"),
    [
        (scenario, name)
        for scenario in ("jobs", "batch", "dispatch", "services_and_search", "parse")
        for name, exchange in exchanges(scenario).items()
        if isinstance(exchange["response"]["body"], dict)
        and isinstance(exchange["response"]["body"].get("TaskGroups"), list)
        # It uses an operator that no server knows, to show that the parser keeps it.
        and not name.startswith("13-constraints")
    ],
)
def test_every_job_that_a_real_server_accepted_is_valid(scenario: str, name: str) -> None:
    assert validate(complete(answered(scenario, name))) == []


def faults_of(**over: Any) -> str:
    return format_errors(validate(complete(small_job(**over))))


@pytest.mark.parametrize(
    ("over", "fault"),
    [
        ({"Name": ""}, "Missing job name"),
        ({"ID": "a\0b"}, "Job ID contains a null character"),
        ({"Datacenters": ["dc1", ""]}, "Job datacenter must be non-empty string"),
        ({"Type": "system", "Affinities": [{"LTarget": "a", "Operand": "=", "RTarget": "b"}]}, "System jobs may not have an affinity block"),
        ({"Constraints": [{"LTarget": "a"}]}, "Missing constraint operand"),
        ({"Constraints": [{"Operand": "=", "RTarget": "b"}]}, "No LTarget provided but is required by constraint"),
        ({"Constraints": [{"LTarget": "a", "Operand": "version", "RTarget": "latest"}]}, "Version constraint is invalid: Malformed constraint: latest"),
        ({"Constraints": [{"LTarget": "a", "Operand": "distinct_property", "RTarget": "0"}]}, "Distinct Property must have an allowed count of 1 or greater: 0 < 1"),
        ({"Affinities": [{"LTarget": "a", "Operand": "=", "RTarget": "b", "Weight": 101}]}, "Affinity weight must be within the range [-100,100]"),
        ({"Spreads": [{"Attribute": "a", "SpreadTarget": [{"Value": "x", "Percent": 60}, {"Value": "y", "Percent": 60}]}]}, "Sum of spread target percentages must not be greater than 100%; got 120%"),
        ({"group": {"RestartPolicy": {"Interval": 10**9}}}, "Interval can not be less than 5s (got 1s)"),
        ({"group": {"RestartPolicy": {"Mode": "never"}}}, 'Unsupported restart mode: "never"'),
        ({"group": {"ReschedulePolicy": {"DelayFunction": "sudden"}}}, 'Invalid delay function "sudden", must be one of ["constant" "exponential" "fibonacci"]'),
        ({"group": {"ReschedulePolicy": {"Attempts": 5, "Unlimited": False, "Interval": "1m", "Delay": "30s", "DelayFunction": "constant"}}}, "Set the interval to at least 2m30s to accommodate 5 attempts"),
        ({"group": {"EphemeralDisk": {"SizeMB": 5}}}, "minimum DiskMB value is 10; got 5"),
        ({"group": {"Update": {"AutoPromote": True}}}, "Auto Promote requires a Canary count greater than zero"),
        ({"group": {"Update": {"MinHealthyTime": "10m"}}}, "Minimum healthy time must be less than healthy deadline: 10m0s > 5m0s"),
        ({"group": {"Migrate": {"HealthCheck": "magic"}}}, 'Invalid HealthCheck: "magic"'),
        ({"Type": "batch", "group": {"Migrate": {}}}, 'Job type "batch" does not allow migrate block'),
        ({"Type": "service", "Periodic": {"Spec": "@daily"}}, 'Periodic can only be used with "batch" or "sysbatch" scheduler'),
        ({"Type": "batch", "Periodic": {"Spec": "@daily", "TimeZone": "Mars/Olympus"}}, 'Invalid time zone "Mars/Olympus"'),
        ({"Type": "batch", "Periodic": {}}, "Must specify a spec"),
        ({"Type": "batch", "ParameterizedJob": {"Payload": "maybe"}}, 'Unknown payload requirement: "maybe"'),
        ({"Type": "batch", "ParameterizedJob": {"MetaRequired": ["a", "b"], "MetaOptional": ["b"]}}, "Following keys exist in both: [b]"),
        ({"group": {"Scaling": {"Min": 1}}}, "maximum count must be specified and non-negative"),
        ({"group": {"Count": 9, "Scaling": {"Min": 1, "Max": 5}}}, "task group count must not be greater than maximum count in scaling policy"),
        ({"group": {"Networks": [{"ReservedPorts": [{"Label": "a", "Value": 80}, {"Label": "b", "Value": 80}]}]}}, "Static port 80 already reserved by taskgroup network:a"),
        ({"group": {"Networks": [{"DynamicPorts": [{"Label": "a"}, {"Label": "a"}]}]}}, "Port label a already in use by taskgroup network"),
        ({"group": {"Networks": [{"ReservedPorts": [{"Label": "a", "Value": 70000}]}]}}, "Port a (70000) cannot be greater than 65535"),
        ({"group": {"Networks": [{"Mode": "carrier-pigeon"}]}}, 'invalid network mode "carrier-pigeon"'),
        ({"group": {"Volumes": {"v": {"Type": "tape", "Source": "x"}}}}, "volume has unrecognized type tape"),
        ({"task": {"VolumeMounts": [{"Volume": "v", "Destination": "/x"}]}}, "Task task has a volume mount (0) referencing undefined volume v"),
        ({"task": {"Name": "a/b"}}, "Task name cannot include slashes"),
        ({"task": {"Name": "alloc"}}, 'Task name cannot be "alloc"'),
        ({"task": {"Resources": {"CPU": 0}}}, "minimum CPU value is 1; got 0"),
        ({"task": {"Resources": {"CPU": 10, "Cores": 1}}}, "Task can only ask for 'cpu' or 'cores' resource, not both."),
        ({"task": {"Resources": {"MemoryMB": 100, "MemoryMaxMB": 50}}}, "MemoryMaxMB value (50) should be larger than MemoryMB value (100)"),
        ({"task": {"LogConfig": {"MaxFiles": 100}}}, "log storage (1000 MB) must be less than requested disk capacity (300 MB)"),
        ({"task": {"Constraints": [{"Operand": "distinct_hosts"}]}}, "Constraint 1 has disallowed Operand at task level: distinct_hosts"),
        ({"task": {"Templates": [{"EmbeddedTmpl": "x", "DestPath": "../../etc/passwd"}]}}, "destination escapes allocation directory"),
        ({"task": {"Templates": [{"DestPath": "local/x"}]}}, "Must specify a source path or have an embedded template"),
        ({"task": {"Artifacts": [{"GetterSource": "https://x/y", "GetterOptions": {"checksum": "md5:abc"}}]}}, "invalid md5 checksum: abc"),
        ({"task": {"Lifecycle": {"Hook": "sometime"}}}, "Lifecycle validation failed: invalid hook: sometime"),
        ({"task": {"Services": [{"Name": "no spaces please"}]}}, "Service name must be valid per RFC 1123"),
        ({"task": {"Services": [{"PortLabel": "nope"}]}}, 'port label "nope" referenced by services web-group-task does not exist'),
        ({"task": {"Services": [{"Provider": "nomad", "PortLabel": "80", "Checks": [{"Type": "grpc"}]}]}}, 'check type must be one of "http", "tcp"; not "grpc"'),
        ({"group": {"Disconnect": {"LostAfter": -1}}}, "lost_after cannot be a negative duration"),
        ({"group": {"MaxClientDisconnect": 1, "StopAfterClientDisconnect": 1}}, "Task group cannot be configured with both"),
    ],
)  # fmt: skip
def test_each_broken_rule_is_named(over: dict[str, Any], fault: str) -> None:
    assert fault in faults_of(**over)


def test_all_faults_are_reported_at_once() -> None:
    faults = validate(
        complete(
            small_job(ID="a b", Priority=500, task={"Driver": "", "Resources": {"MemoryMB": 1}})
        )
    )
    assert len(faults) == 3
    assert "Missing task driver" in faults[1]
    assert "minimum MemoryMB value is 10; got 1" in faults[1]


def test_a_job_with_many_reschedule_attempts_is_judged_in_constant_time() -> None:
    policy = {
        "Attempts": 10**12,
        "Unlimited": False,
        "Interval": "24h",
        "Delay": "5s",
        "MaxDelay": "1h",
    }
    assert "Nomad can only make" in faults_of(group={"ReschedulePolicy": policy})


def test_warnings_read_as_recorded() -> None:
    job = complete(sent("dispatch", "periodic-register")["Job"])
    assert format_warnings(warnings(job)) == answered("dispatch", "periodic-register")["Warnings"]
    assert format_warnings([]) == ""
    assert format_warnings(["a", "b"]) == "2 warnings:\n\n* a\n* b"


def test_the_limits_of_the_server_hold() -> None:
    job = complete(small_job(Priority=150, group={"Count": 11}))
    assert validate(job, max_priority=200) == []
    assert validate(job, max_priority=200, max_count=10) == [
        "total count was greater than configured job_max_count: 11 > 10"
    ]


@pytest.mark.parametrize("text", ["^a+$", "(?i)linux", "a(?i)b", r"\d+\.\d+", r"end\z", "(?P<n>x)"])
def test_regular_expressions_of_go_compile(text: str) -> None:
    assert regexp_fault(text) == ""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("([", "missing closing ]: `[`"),
        ("(a", "missing closing ): `(a`"),
        ("a)", "unexpected ): `a)`"),
        ("*a", "missing argument to repetition operator: `*`"),
        ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
        (r"(a)\1", r"invalid escape sequence: `\1`"),
        ("[z-a]", "invalid character class range: `z-a`"),
    ],
)
def test_what_is_no_regular_expression_in_go_is_refused(text: str, fault: str) -> None:
    assert regexp_fault(text) == f"error parsing regexp: {fault}"


@given(st.text(max_size=20))
def test_any_text_is_a_pattern_or_a_value_error(text: str) -> None:
    try:
        compile_regexp(text)
    except ValueError as refused:
        assert "error parsing regexp" in str(refused)  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize("text", [">= 1.2", "~> 1.2.3, < 2", "= v1.0.0-beta+x", "1"])
def test_version_constraints_are_accepted(text: str) -> None:
    assert version_constraint_fault(text) == ""


@given(
    st.recursive(
        st.none() | st.integers(-5, 5) | st.text(max_size=3) | st.booleans(),
        lambda inner: st.lists(inner, max_size=2),
        max_leaves=3,
    )
)
def test_validation_never_fails_by_itself(value: Any) -> None:
    # A value of the wrong kind is refused before; one of the right kind must not break a rule's own code.
    for path in ("group", "task"):
        for key in ("Count", "Name", "KillTimeout", "Driver", "ShutdownDelay", "Meta"):
            try:
                job = complete(small_job(**{path: {key: value}}))
            except Exception as refused:
                assert getattr(refused, "status", 0) == 400  # noqa: PT017
                continue
            validate(job)
            warnings(job)
