"""The kit's front door: python jepsen-style/run.py --help."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from jepsen_style.cli import main  # found by the path above

if __name__ == "__main__":
    sys.exit(main())
