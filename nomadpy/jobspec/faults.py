"""Lists of faults as one text, in the form that Nomad's clients show and scripts match."""

from __future__ import annotations

from collections.abc import Sequence


def format_errors(faults: Sequence[str]) -> str:
    """Return `1 error occurred:\\n\\t* ...\\n\\n` or `N errors occurred:...`.

    Source: the text of HashiCorp's go-multierror, as recorded.
    """
    if len(faults) == 1:
        return f"1 error occurred:\n\t* {faults[0]}\n\n"
    points = "\n\t".join(f"* {fault}" for fault in faults)
    return f"{len(faults)} errors occurred:\n\t{points}\n\n"


def format_warnings(notes: Sequence[str]) -> str:
    """Return `1 warning:\\n\\n* ...`, or "" without warnings."""
    if not notes:
        return ""
    plural = "" if len(notes) == 1 else "s"
    return f"{len(notes)} warning{plural}:\n" + "".join(f"\n* {note}" for note in notes)


def nested(heading: str, faults: Sequence[str]) -> list[str]:
    """Return the faults of a part as one fault of the whole, or nothing."""
    return [f"{heading}: {format_errors(faults)}"] if faults else []
