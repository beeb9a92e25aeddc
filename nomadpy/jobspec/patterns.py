"""Whether texts that a job carries are sound: regular expressions (Go's dialect), version constraints, names."""

from __future__ import annotations

import re

# What Python understands and Go's RE2 does not: look-around, conditionals, atomic groups, comments, back-references.
_PYTHON_ONLY = re.compile(r"(?<!\\)(?:\\\\)*(\(\?(?:=|!|<=|<!|\(|>|#|P=|P>)|\\[1-9])")
# What Go understands and Python does not.
_GO_ONLY = ((re.compile(r"(?<!\\)((?:\\\\)*)\\z"), r"\1\\Z"),)
_FLAGS_INSIDE = re.compile(r"\(\?([imsU]+)\)")

_CLAUSE = re.compile(
    r"\s*(?:=|!=|>|<|>=|<=|~>|)\s*v?[0-9]+(?:\.[0-9]+)*(?:-?[0-9A-Za-z-~]+(?:\.[0-9A-Za-z-~]+)*)?"
    r"(?:\+[0-9A-Za-z-~]+(?:\.[0-9A-Za-z-~]+)*)?\s*"
)
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_VARIABLE = re.compile(r"\$\{[^}]*\}")


def compile_regexp(text: str) -> re.Pattern[str]:
    """Compile a regular expression of Go's dialect. Raises ValueError with Go's words.

    Differs from Go where Python's engine does: it backtracks, and named character classes such as \\pL are unknown.
    """
    foreign = _PYTHON_ONLY.search(text)
    if foreign:
        what = foreign.group(1)
        reason = (
            "invalid escape sequence" if what[0] == "\\" else "invalid or unsupported Perl syntax"
        )
        raise ValueError(f"error parsing regexp: {reason}: `{what}`")
    ported = text
    for pattern, replacement in _GO_ONLY:
        ported = pattern.sub(replacement, ported)
    # Go allows flags anywhere; Python 3.11 at the start only, or scoped to a group.
    inside = _FLAGS_INSIDE.search(ported)
    if inside and inside.start() > 0:
        ported = f"{ported[: inside.start()]}(?{inside.group(1)}:{ported[inside.end() :]})"
    try:
        return re.compile(ported)
    except re.error as cause:
        raise ValueError(_in_go_words(text, cause)) from cause
    except (RecursionError, OverflowError):
        raise ValueError("error parsing regexp: expression too large") from None


def regexp_fault(text: str) -> str:
    """Return why `text` is no regular expression of Go's dialect, or ""."""
    try:
        compile_regexp(text)
    except ValueError as fault:
        return str(fault)
    return ""


def version_constraint_fault(text: str) -> str:
    """Return why `text` (`>= 1.2, < 2.0`) is no version constraint, or ""."""
    for clause in text.split(","):
        if not _CLAUSE.fullmatch(clause):
            return f"Malformed constraint: {clause}"
    return ""


def valid_label(text: str) -> bool:
    """Whether `text` is a DNS label (RFC 1123) once its `${...}` are put aside."""
    return bool(_LABEL.fullmatch(_VARIABLE.sub("ENV-VAR", text)))


def valid_hostname(text: str) -> bool:
    """Whether `text` is a DNS name."""
    return len(text) <= 253 and all(_LABEL.fullmatch(part) for part in text.split("."))


def _in_go_words(text: str, cause: re.error) -> str:
    position = cause.pos or 0
    said = cause.msg
    if said.startswith("unterminated character set"):
        reason, where = "missing closing ]", text[position:]
    elif said.startswith("missing ), unterminated subpattern"):
        reason, where = "missing closing )", text
    elif said.startswith("unbalanced parenthesis"):
        reason, where = "unexpected )", text
    elif said.startswith("nothing to repeat"):
        reason, where = "missing argument to repetition operator", text[position : position + 1]
    elif said.startswith("multiple repeat"):
        reason, where = (
            "invalid nested repetition operator",
            text[max(0, position - 1) : position + 1],
        )
    elif said.startswith("bad character range"):
        reason, where = "invalid character class range", said.rpartition(" ")[2]
    elif said.startswith("bad escape (end of pattern)"):
        reason, where = "trailing backslash at end of expression", ""
    elif said.startswith("bad escape"):
        reason, where = "invalid escape sequence", said.rpartition(" ")[2]
    else:
        reason, where = said, text[position:]
    return f"error parsing regexp: {reason}: `{where}`"
