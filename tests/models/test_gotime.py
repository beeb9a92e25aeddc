from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.models.base import ZERO_TIME
from nomadpy.models.gotime import from_ns, to_ns


def test_zero_is_gos_zero_time() -> None:
    assert from_ns(0) == ZERO_TIME
    assert to_ns(ZERO_TIME) == 0
    assert to_ns("") == 0


def test_trailing_zeros_are_dropped() -> None:
    assert from_ns(1_795_393_012_500_000_000) == "2026-11-23T00:16:52.5Z"
    assert from_ns(1_795_393_012_000_000_000) == "2026-11-23T00:16:52Z"


def test_zones_are_understood() -> None:
    assert to_ns("2026-11-23T01:16:52.5+01:00") == to_ns("2026-11-23T00:16:52.5Z")


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        to_ns("nonsense")


@given(st.integers(1, 4_000_000_000_000_000_000))
def test_every_moment_survives_the_text(moment: int) -> None:
    assert to_ns(from_ns(moment)) == moment
