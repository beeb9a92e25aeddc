"""The metrics registry: intervals, figures, both renderings."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.metrics import DROPPED, INTERVAL_S, MAX_SERIES, Registry


class HandClock:
    """A clock the test moves."""

    def __init__(self) -> None:
        self.ns = 1_795_393_010_000_000_000

    def now_ns(self) -> int:
        return self.ns

    def monotonic(self) -> float:
        return self.ns / 1e9

    def forward(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def registry(clock: HandClock) -> Registry:
    return Registry(clock, {"host": "vm"})


def shown(registry: Registry, kind: str) -> dict[str, dict[str, object]]:
    return {row["Name"]: row for row in json.loads(registry.json_body())[kind]}


def test_a_counter_has_the_figures_of_its_interval(registry: Registry) -> None:
    for value in (1, 2, 3, 6):
        registry.count("jobs", value)
    row = shown(registry, "Counters")["jobs"]
    assert (row["Count"], row["Sum"], row["Min"], row["Max"], row["Mean"]) == (4, 12, 1, 6, 3)
    assert row["Rate"] == 12 / INTERVAL_S
    assert row["Stddev"] == pytest.approx(2.160, abs=0.001)
    assert row["Labels"] == {"host": "vm"}


def test_the_last_whole_interval_is_shown_and_an_idle_one_is_empty(
    registry: Registry, clock: HandClock
) -> None:
    registry.count("a")
    clock.forward(INTERVAL_S)
    registry.count("b")
    assert set(shown(registry, "Counters")) == {"a"}
    clock.forward(INTERVAL_S)
    assert set(shown(registry, "Counters")) == {"b"}
    clock.forward(10 * INTERVAL_S)
    assert shown(registry, "Counters") == {}


def test_a_clock_that_jumps_back_does_not_stop_the_intervals(
    registry: Registry, clock: HandClock
) -> None:
    registry.count("a")
    clock.forward(-3600)
    registry.count("b")
    clock.forward(INTERVAL_S)
    registry.count("c")
    assert set(shown(registry, "Counters")) == {"b"}


def test_the_timestamp_has_gos_form(registry: Registry) -> None:
    stamp = json.loads(registry.json_body())["Timestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000 UTC", stamp)


def test_gauges_stay_until_dropped_and_collectors_set_them(registry: Registry) -> None:
    registry.gauge("depth", 3, queue="ready")
    registry.collect_with(lambda r: r.gauge("fresh", 1))
    assert set(shown(registry, "Gauges")) == {"depth", "fresh"}
    registry.drop_gauge("depth", queue="ready")
    assert set(shown(registry, "Gauges")) == {"fresh"}


def test_a_block_is_timed_also_when_it_fails(registry: Registry, clock: HandClock) -> None:
    with pytest.raises(ZeroDivisionError), registry.timed("work"):
        clock.forward(0.25)
        _ = 1 / 0
    assert shown(registry, "Samples")["work"]["Max"] == pytest.approx(250)


def test_prometheus_totals_outlive_the_interval(registry: Registry, clock: HandClock) -> None:
    registry.count("nomad.jobs", 2)
    clock.forward(100)
    registry.count("nomad.jobs", 3)
    registry.observe("nomad.plan", 5)
    text = registry.prometheus_text()
    assert 'nomad_jobs{host="vm"} 5.0' in text
    assert "# TYPE nomad_jobs counter" in text
    assert 'nomad_plan{host="vm",quantile="0.5"} 5.0' in text
    assert 'nomad_plan_count{host="vm"} 1.0' in text


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.text(max_size=20), max_size=3),
    st.text(min_size=1, max_size=20),
)
def test_any_name_and_label_is_one_valid_prometheus_line(labels: dict[str, str], name: str) -> None:
    registry = Registry(HandClock())
    registry.gauge(name, 1.5, **{f"l{k}": v for k, v in labels.items()})
    lines = registry.prometheus_text().rstrip("\n").split("\n")
    assert len(lines) == 2
    assert re.fullmatch(
        r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_]\w*="([^"\\\n]|\\["\\n])*",?)*\})? 1\.5', lines[1]
    )
    json.loads(registry.json_body())


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_the_mean_lies_between_the_extremes(values: list[float]) -> None:
    registry = Registry(HandClock())
    for value in values:
        registry.observe("x", value)
    row = json.loads(registry.json_body())["Samples"][0]
    assert row["Min"] <= row["Mean"] * (1 + 1e-9) + 1e-9
    assert row["Mean"] <= row["Max"] * (1 + 1e-9) + 1e-9
    assert row["Stddev"] >= 0


def test_labels_with_too_many_values_do_not_fill_the_memory(registry: Registry) -> None:
    for number in range(MAX_SERIES + 50):
        registry.count("jobs", job=str(number))
        registry.observe("plans", 1.0, job=str(number))
        registry.gauge("depth", 1.0, job=str(number))
    body = json.loads(registry.json_body())
    assert len(body["Counters"]) == len(body["Samples"]) == MAX_SERIES
    assert len(body["Gauges"]) == MAX_SERIES + 1
    assert shown(registry, "Gauges")[DROPPED]["Value"] == 150
    registry.count("jobs", job="0")
    assert json.loads(registry.json_body())["Counters"][0]["Count"] == 2


def test_a_collectors_gauge_is_gone_when_it_is_not_set_again(registry: Registry) -> None:
    status = ["initializing"]
    registry.collect_with(lambda r: r.gauge("node", 1, status=status[0]))
    registry.gauge("pushed", 1)
    shown(registry, "Gauges")
    status[0] = "ready"
    gauges = json.loads(registry.json_body())["Gauges"]
    assert [g["Labels"].get("status") for g in gauges] == ["ready", None]


def test_what_is_no_finite_number_is_left_out(registry: Registry) -> None:
    registry.gauge("contact", float("inf"))
    registry.gauge("share", float("nan"))
    assert shown(registry, "Gauges") == {}


async def test_refreshing_awaits_what_takes_time(registry: Registry) -> None:
    measured: list[int] = []

    async def measure() -> None:
        measured.append(1)

    registry.refresh_with(measure)
    await registry.refresh()
    assert measured == [1]
