"""The kit is no part of the installed package: its folder is put on the path, as its run.py does."""

from __future__ import annotations

import sys
from pathlib import Path

KIT = Path(__file__).parents[2] / "jepsen-style"
sys.path.insert(0, str(KIT))
