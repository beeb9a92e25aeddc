"""Rules for constraints, affinities and spreads."""

from __future__ import annotations

from nomadpy.jobspec import patterns
from nomadpy.jobspec.durations import go_quote
from nomadpy.models.constraint import Affinity, Constraint, Spread

COMPARISONS = frozenset(("=", "==", "is", "!=", "not", "<", "<=", ">", ">="))
SETS = frozenset(("set_contains", "set_contains_all", "set_contains_any"))


def constraint_faults(constraint: Constraint) -> list[str]:
    """Return what is wrong with one constraint."""
    if not constraint.operand:
        return ["Missing constraint operand"]
    operand, right = constraint.operand, constraint.r_target
    faults: list[str] = []
    needs_left = True
    if operand == "distinct_hosts":
        needs_left = False
        if right.lower() not in ("", "1", "t", "true", "0", "f", "false"):
            faults.append(f"Failed to convert RTarget {go_quote(right)} to bool")
    elif operand == "distinct_property":
        faults += _distinct_count(right)
    elif operand in ("is_set", "is_not_set"):
        if right:
            faults.append(f"Operator {go_quote(operand)} does not support an RTarget")
    else:
        faults += _matching(operand, right, f"Unknown constraint type {go_quote(operand)}")
    if needs_left and not constraint.l_target:
        faults.append("No LTarget provided but is required by constraint")
    return faults


def affinity_faults(affinity: Affinity) -> list[str]:
    """Return what is wrong with one affinity."""
    if not affinity.operand:
        return ["Missing affinity operand"]
    unknown = f"Unknown affinity operator {go_quote(affinity.operand)}"
    faults = _matching(affinity.operand, affinity.r_target, unknown)
    if not affinity.l_target:
        faults.append("No LTarget provided but is required")
    if affinity.weight == 0:
        faults.append("Affinity weight cannot be zero")
    elif affinity.weight is not None and not -100 <= affinity.weight <= 100:
        faults.append("Affinity weight must be within the range [-100,100]")
    return faults


def spread_faults(spread: Spread) -> list[str]:
    """Return what is wrong with one spread."""
    faults: list[str] = []
    if not spread.attribute:
        faults.append("Missing spread attribute")
    if spread.weight is None or not 0 < spread.weight <= 100:
        faults.append("Spread block must have a positive weight from 0 to 100")
    seen: set[str] = set()
    total = 0
    for target in spread.spread_target or []:
        if target.value in seen:
            faults.append(f"Spread target value {go_quote(target.value)} already defined")
        seen.add(target.value)
        if not 0 <= target.percent <= 100:
            faults.append(
                f"Spread target percentage for value {go_quote(target.value)} must be between 0 and 100"
            )
        total += target.percent
    if total > 100:
        faults.append(
            f"Sum of spread target percentages must not be greater than 100%; got {total}%"
        )
    return faults


def _matching(operand: str, right: str, unknown: str) -> list[str]:
    """The operators that constraints and affinities share."""
    if operand in SETS:
        if not right:
            return ["Set contains constraint requires an RTarget"]
    elif operand == "regexp":
        fault = patterns.regexp_fault(right)
        if fault:
            return [f"Regular expression failed to compile: {fault}"]
    elif operand in ("version", "semver"):
        fault = patterns.version_constraint_fault(right)
        if fault:
            return [f"{operand.capitalize()} constraint is invalid: {fault}"]
    elif operand in COMPARISONS:
        if not right:
            return [f"Operator {go_quote(operand)} requires an RTarget"]
    else:
        return [unknown]
    return []


def _distinct_count(right: str) -> list[str]:
    if not right:
        return []
    if not (right.isascii() and right.isdigit()):
        return [
            f"Failed to convert RTarget {go_quote(right)} to uint64: "
            f"strconv.ParseUint: parsing {go_quote(right)}: invalid syntax"
        ]
    if int(right) < 1:
        return [f"Distinct Property must have an allowed count of 1 or greater: {int(right)} < 1"]
    return []
