"""Hold a recording of one server against a recording of another, exchange by exchange.

    python compare.py REFERENCE_DIR CANDIDATE_DIR [--show N] [--scenario NAME ...] [--json]

An exchange passes when the status is equal, no field of the reference is missing, no field has another JSON
type, and no stable value differs. Values that cannot be equal (ids, times, indexes, addresses, sizes measured
on the machine) are compared by their kind only. Error texts are compared word for word, and counted apart.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
# Maps whose keys depend on the machine, the build or the run: only the kind of their values is compared.
OPEN_MAPS = {
    "Attributes",
    "Drivers",
    "HostVolumes",
    "HostNetworks",
    "Links",
    "Details",
    "Labels",
    "config",
    "stats",
    "Tags",
    "ClassEligibility",
    "NodesAvailable",
    "NodesInPool",
    "CSIControllerPlugins",
    "CSINodePlugins",
    "Devices",
    "Pids",
    "ClassFiltered",
    "ClassExhausted",
    "DimensionExhausted",
    "Scores",
    "NodeResources",
    "ReservedResources",
}
ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+(:\d+)?")
# Everything below these paths is a measurement: only its kind is compared.
MEASURED = re.compile(r"^\.(stats|Counters|Gauges|Samples|Points)\b|ScoreMetaData")
# Values that differ between two honest servers.
VOLATILE = re.compile(
    r"(Index$|Time$|^ID$|ID$|^Address|Addr$|^Name$|Hash$|^Node|Revision|Version$|^Size$|^ModTime$|Duration|Percent|Ticks|Usage|"
    r"^RSS$|^Cache$|^Swap|^Key|^Events?$|^Timestamp$|^Used|^Available|^Free$|^Total$|Bytes|^HostIP$|^IP$|^Value$|^Port$|"
    r"^CIDR$|^Mode?l?$|^Message$|^DisplayMessage$|^Mountpoint$|^SecretID$|^AccessorID$|LastContact|^Score|^n$|^kid$|"
    r"UpdatedAt$|^ComputedClass$|^Path$|^User$|^Uptime$|^Idle$|^System$|^DiskStats$|^TotalTicks$|^Unix)"
)


def kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, dict) else "array"


def merged(items: list[Any]) -> Any:
    """One specimen that has every key any of the items has."""
    if items and all(isinstance(item, dict) for item in items):
        out: dict[str, Any] = {}
        for item in items:
            for key, value in item.items():
                if out.get(key) in (None, [], {}):
                    out[key] = value
        return out
    return items[0] if items else None


def differences(want: Any, got: Any, path: str = "", key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (what differs, where) for two JSON values."""
    if kind(want) != kind(got):
        empty = (None, [], {}, "", 0, False)
        if want in empty and got in empty:
            yield "empty-kind", f"{path}: {json.dumps(want)} != {json.dumps(got)}"
        elif want is not None and got is not None:
            yield "type", f"{path}: {kind(want)} != {kind(got)}"
        elif not VOLATILE.search(key):
            yield "value", f"{path}: {json.dumps(want)[:60]} != {json.dumps(got)[:60]}"
        return
    if isinstance(want, dict):
        if key in OPEN_MAPS or (want and all(UUID.search(k) or len(k) == 64 for k in want)):
            if want and got:
                yield from differences(
                    merged(list(want.values())), merged(list(got.values())), path + ".*", ""
                )
            elif want and not got:
                yield "value", f"{path}: empty"
            return
        for name in want:
            if name not in got:
                yield "missing", f"{path}.{name}"
            else:
                yield from differences(want[name], got[name], f"{path}.{name}", name)
        for name in got:
            if name not in want:
                yield "extra", f"{path}.{name}"
        return
    if isinstance(want, list):
        if bool(want) != bool(got):
            yield "value", f"{path}: {len(want)} items != {len(got)} items"
        elif (
            want
            and all(isinstance(x, dict) for x in [*want, *got])
            and len(want) == len(got)
            and key != "Events"
        ):
            for number, (one, other) in enumerate(
                zip(sorted(want, key=stable), sorted(got, key=stable), strict=False)
            ):
                yield from differences(one, other, f"{path}[{number}]", key)
        elif want and (
            key == "Events"
            or len(want) != len(got)
            or any(isinstance(x, dict) and "ID" in x for x in want)
        ):
            if len(want) != len(got) and not VOLATILE.search(key):
                yield "length", f"{path}: {len(want)} items != {len(got)} items"
            yield from differences(merged(want), merged(got), path + "[]", "")
        else:
            for number, (one, other) in enumerate(zip(want, got, strict=False)):
                yield from differences(one, other, f"{path}[{number}]", key)
        return
    if want == got or VOLATILE.search(key) or MEASURED.search(path):
        return
    if isinstance(want, str) and ADDRESS.fullmatch(want) and ADDRESS.fullmatch(got):
        return
    if isinstance(want, str) and (UUID.search(want) or TIME.match(want)):
        if bool(UUID.search(want)) != bool(UUID.search(got)) or bool(TIME.match(want)) != bool(
            TIME.match(got)
        ):
            yield "value", f"{path}: {want[:60]!r} != {got[:60]!r}"
        return
    if isinstance(want, (int, float)) and not isinstance(want, bool) and want > 1e15 and got > 1e15:
        return
    yield "value", f"{path}: {json.dumps(want)[:60]} != {json.dumps(got)[:60]}"


def stable(item: dict) -> str:
    """A sort key out of what two honest servers would agree on, so that lists need no common order."""
    return json.dumps(
        {k: v for k, v in item.items() if isinstance(v, (str, bool)) and not VOLATILE.search(k)}
        | {"Name": item.get("Name", "")},
        sort_keys=True,
    )


def load(folder: pathlib.Path, name: str) -> dict[str, dict]:
    path = folder / f"{name}.jsonl"
    if not path.exists():
        return {}
    return {e["name"]: e for e in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def plain(text: str) -> list[str]:
    """An answer's words without ids, addresses and folders."""
    return re.sub(r"/\S+/", "/", ADDRESS.sub("<address>", UUID.sub("<id>", text))).split()


def judge(want: dict, got: dict | None) -> list[tuple[str, str]]:
    if got is None:
        return [("absent", "no such exchange")]
    found: list[tuple[str, str]] = []
    a, b = want["response"], got["response"]
    if a["status"] != b["status"]:
        found.append(("status", f"{a['status']} != {b['status']}: {str(b['body'])[:100]!r}"))
    if (
        a["headers"].get("Content-Type", "").split(";")[0]
        != b["headers"].get("Content-Type", "").split(";")[0]
    ):
        found.append(
            (
                "header",
                f"Content-Type {a['headers'].get('Content-Type')} != {b['headers'].get('Content-Type')}",
            )
        )
    found.extend(("header", f"{h} missing") for h in a["headers"] if h not in b["headers"])
    if isinstance(a["body"], str) and isinstance(b["body"], str):
        if plain(a["body"]) != plain(b["body"]):
            found.append(("text", f"{a['body'][:120]!r} != {b['body'][:120]!r}"))
    elif a["status"] == b["status"]:
        found.extend(differences(a["body"], b["body"], "", ""))
    return found


SOFT = {"extra", "empty-kind", "text", "length"}


class Counts(NamedTuple):
    """One scenario: exchanges in all, without a hard difference, without any; and what failed, a line an exchange."""

    total: int
    passed: int
    exact: int
    failures: list[str]


def compare_scenarios(reference: pathlib.Path, candidate: pathlib.Path) -> dict[str, Counts]:
    """Hold every recorded scenario of `candidate` against the one of the same name in `reference`."""
    results: dict[str, Counts] = {}
    for path in sorted(candidate.glob("*.jsonl")):
        wanted, recorded = load(reference, path.stem), load(candidate, path.stem)
        passed = exact = 0
        failures: list[str] = []
        for step, want in wanted.items():
            found = judge(want, recorded.get(step))
            hard = [f for f in found if f[0] not in SOFT]
            passed += not hard
            exact += not found
            if hard:
                failures.append(
                    f"{step}: " + "; ".join(f"{what}: {where}" for what, where in hard[:4])
                )
        results[path.stem] = Counts(len(wanted), passed, exact, failures)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=pathlib.Path)
    parser.add_argument("candidate", type=pathlib.Path)
    parser.add_argument("--show", type=int, default=8, help="differences to print for one exchange")
    parser.add_argument("--scenario", action="append")
    parser.add_argument("--quiet", action="store_true", help="print only the totals")
    options = parser.parse_args()
    all_passed = all_exact = all_total = 0
    for path in sorted(options.reference.glob("*.jsonl")):
        name = path.stem
        if options.scenario and name not in options.scenario:
            continue
        reference, candidate = load(options.reference, name), load(options.candidate, name)
        passed = exact = 0
        lines: list[str] = []
        for step, want in reference.items():
            found = judge(want, candidate.get(step))
            hard = [f for f in found if f[0] not in SOFT]
            passed += not hard
            exact += not found
            if found and not options.quiet:
                lines.append(f"  {'FAIL' if hard else 'soft'} {step}")
                ordered = sorted(found, key=lambda f: f[0] in SOFT)
                lines += [f"      {what}: {where}" for what, where in ordered[: options.show]]
                if len(found) > options.show:
                    lines.append(f"      ... {len(found) - options.show} more")
        all_passed, all_exact, all_total = (
            all_passed + passed,
            all_exact + exact,
            all_total + len(reference),
        )
        print(f"{name}: {passed} of {len(reference)} pass, {exact} exact")
        print("\n".join(lines)) if lines else None
    print(f"total: {all_passed} of {all_total} pass, {all_exact} exact")
    return 0 if all_total and all_passed == all_total else 1


if __name__ == "__main__":
    sys.exit(main())
