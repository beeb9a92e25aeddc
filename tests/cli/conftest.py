"""No variable of the developer's shell reaches a test."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("NOMAD_", "NOMADPY_")):
            monkeypatch.delenv(name)
