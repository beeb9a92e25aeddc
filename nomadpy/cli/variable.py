"""`var ...`: specifications, reading, writing, listing and purging variables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from nomadpy.cli.client import Answered
from nomadpy.cli.command import Call, command
from nomadpy.cli.errors import ApiError, CliError, UsageError
from nomadpy.cli.flags import Flag, number, text
from nomadpy.cli.output import say, stamp, table, warn
from nomadpy.cli.variable_spec import EXAMPLE, as_hcl, as_json, as_table, form_of, read_spec

_CHECK_INDEX = number(
    "check-index",
    "Only if the variable's modify index is still this; 0: only if there is none.",
    "index",
)


def out_flag(*forms: str) -> Flag:
    """-out with the forms a command knows."""
    return text("out", f"The form of the output: {', '.join(forms)}.", "form")


@command(
    "var init [options] [<filename>]",
    "Write an example specification of a variable, spec.nv.hcl or spec.nv.json without a name.",
    flags=(out_flag("hcl", "json"), Flag("quiet", "Say nothing when it is written.")),
    operands=(0, 1),
    general=False,
)
def init(call: Call) -> int:
    """Write a file that does not exist yet."""
    form = _form(call, ("hcl", "json"), "hcl")
    path = Path(call.operand() or f"spec.nv.{form}")
    content = as_hcl(EXAMPLE) if form == "hcl" else as_json(EXAMPLE)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content + "\n")
    except FileExistsError as cause:
        raise CliError(f"{path} exists already; name another file") from cause
    except OSError as cause:
        raise CliError(f"{path} cannot be written: {cause.strerror}") from cause
    if not call.options.on("quiet"):
        say(f"Example variable specification written to {path}")
    return 0


@command(
    "var get [options] <path>",
    "Show a variable.",
    flags=(
        text("item", "Print only the value of this item, without a newline.", "key"),
        out_flag("table", "json", "hcl", "none"),
    ),
    operands=(1, 1),
)
def get(call: Call) -> int:
    """Show."""
    form = _form(call, ("table", "json", "hcl", "none"), _usual("table"))
    try:
        variable = call.client.get(path_of(call.operand()), doing="retrieving variable")
    except ApiError as error:
        if error.code == 404 and error.body == "variable not found":
            raise CliError(f'Variable "{call.operand()}" not found') from error
        raise
    if "item" in call.options.given:
        key = call.options.text("item")
        items = variable.get("Items") or {}
        if key not in items:
            raise CliError(f'Variable "{call.operand()}" does not contain item "{key}"')
        sys.stdout.write(items[key])
        sys.stdout.flush()
        return 0
    show(variable, form)
    return 0


@command(
    "var put [options] <path|@file|-> [@file|-] [<key>=<value>...]",
    """Create a variable, or write it anew.

The specification comes from a file (@file) or standard input (-, with -in), the items from there and from
key=value; the value may be a file's content (key=@file) or standard input (key=-). A value that begins with
@ or - is written \\@ and \\-. A variable that exists is only overwritten with -force, or when the index is
right: that of -check-index, or the ModifyIndex of the specification.""",
    flags=(
        _CHECK_INDEX,
        Flag("force", "Write whatever is there now."),
        text(
            "in",
            "The form of a specification whose file does not tell: json (the default) or hcl.",
            "form",
        ),
        out_flag("none", "json", "hcl", "table"),
        Flag("verbose", "Say what is done, on standard error."),
    ),
    operands=(1, None),
)
def put(call: Call) -> int:
    """Write, with a check unless forced."""
    options = call.options
    form = _form(call, ("none", "json", "hcl", "table"), _usual("none"))
    if options.on("force") and "check-index" in options.given:
        raise UsageError("-force and -check-index exclude each other")
    variable = described(call, call.operands)
    if not variable.get("Path"):
        raise UsageError("A path is needed, as the first argument or in the specification")
    query: dict[str, Any] = {}
    if not options.on("force"):
        given = options.number("check-index")
        query["cas"] = variable.get("ModifyIndex", 0) if given is None else given
    if options.on("verbose"):
        warn(f'Writing to path "{variable["Path"]}"')
    path = path_of(variable["Path"])
    answer = _send(call, "PUT", path, variable, query)
    if answer.status == 409:
        _explain_conflict(answer, query.get("cas"), force=True)
    written = decoded(answer, "storing variable")
    new = written["CreateIndex"] == written["ModifyIndex"]
    said = f'{"Created" if new else "Updated"} variable "{written["Path"]}" with modify index {written["ModifyIndex"]}'
    if form == "none":
        say(said)
    else:
        if options.on("verbose"):
            warn(said)
        show(written, form)
    return 0


@command(
    "var list [options] [<prefix>]",
    "List variables, or those whose path begins with a prefix.",
    flags=(
        text("filter", "Show only what the expression matches.", "expression"),
        number("per-page", "How many to show."),
        text("page-token", "Where to begin: the token that the page before named.", "token"),
        out_flag("table", "terse", "json"),
    ),
    operands=(0, 1),
)
def list_(call: Call) -> int:
    """List."""
    options = call.options
    form = _form(call, ("table", "terse", "json"), _usual("table"))
    query = {
        "prefix": call.operand() or None,
        "filter": options.text("filter") or None,
        "per_page": options.number("per-page"),
        "next_token": options.text("page-token") or None,
    }
    answer = call.client.raw("GET", "/v1/vars", query=query)
    rows = decoded(answer, "listing variables")
    token = answer.headers.get("x-nomad-nexttoken", "")
    if form == "json":
        say(as_json(rows))
    elif form == "terse":
        for row in rows:
            say(row["Path"])
    elif not rows:
        say("No variables found")
    else:
        shown = [[r["Namespace"], r["Path"], stamp(r["ModifyTime"])] for r in rows]
        say(table("Namespace|Path|Last Updated", shown))
    if token:
        warn(f"There are more. To see the next page:\n\nnomadpy var list -page-token {token}")
    return 0


@command(
    "var purge [options] <path>",
    "Remove a variable for good.",
    flags=(_CHECK_INDEX,),
    operands=(1, 1),
)
def purge(call: Call) -> int:
    """Remove."""
    given = call.options.number("check-index")
    answer = call.client.raw("DELETE", path_of(call.operand()), query={"cas": given})
    if answer.status == 409:
        _explain_conflict(answer, given, force=False)
    decoded(answer, "purging variable")
    say(f'Successfully purged variable "{call.operand()}"!')
    return 0


# -- shared ---------------------------------------------------------------------------------------------


def path_of(path: str) -> str:
    """The API's path of a variable. Slashes of its own stay, all else is escaped."""
    return f"/v1/var/{quote(path, safe='/~')}"


def described(call: Call, words: list[str]) -> dict[str, Any]:
    """The variable that a command line describes: a path or a specification, another specification, items."""
    taken = _Standard()
    first, *rest = words
    variable: dict[str, Any] = {}
    if first == "-" or first.startswith("@"):
        variable = _spec(call, first, taken)
    else:
        if rest and (rest[0] == "-" or (rest[0].startswith("@") and "=" not in rest[0])):
            variable = _spec(call, rest.pop(0), taken)
        # The path on the line is where it goes, and what was at another path is not what is checked there.
        if variable.get("Path") not in (None, first):
            variable.pop("ModifyIndex", None)
        variable["Path"] = first
    items = dict(variable.get("Items") or {})
    for word in rest:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f'"{word}" is not key=value')
        items[key] = _value(value, taken)
    if items or "Items" in variable:
        variable["Items"] = items
    if variable.get("Namespace") and call.client.settings.namespace:
        # The flag or the environment decides, as for every command.
        del variable["Namespace"]
    return variable


def decoded(answer: Answered, doing: str) -> Any:
    """The JSON of an answer; None for an empty one. Raises ApiError for any status but 2xx."""
    import json

    if not 200 <= answer.status < 300:
        raise ApiError(answer.status, answer.body.decode("utf-8", "replace"), doing)
    return json.loads(answer.body) if answer.body else None


def show(variable: dict[str, Any], form: str) -> None:
    """Print a variable."""
    if form == "json":
        say(as_json(variable))
    elif form == "hcl":
        say(as_hcl(variable))
    elif form == "table":
        say(as_table(variable))


class _Standard:
    """Standard input, which can be read once."""

    def __init__(self) -> None:
        self._taken = False

    def read(self) -> str:
        if self._taken:
            raise UsageError("standard input (-) can be named only once")
        self._taken = True
        return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")


def _spec(call: Call, word: str, standard: _Standard) -> dict[str, Any]:
    default = call.options.text("in") or "json"
    if default not in ("json", "hcl"):
        raise UsageError(f'-in is json or hcl, not "{default}"')
    if word == "-":
        return read_spec(standard.read(), default, name="standard input")
    path = word.removeprefix("@")
    return read_spec(_file(path), form_of(path, default), name=path)


def _value(value: str, standard: _Standard) -> str:
    if value == "-":
        return standard.read()
    if value.startswith("@"):
        return _file(value.removeprefix("@"))
    return value[1:] if value.startswith(("\\@", "\\-")) else value


def _file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as cause:
        raise CliError(f"{path} cannot be read: {cause.strerror}") from cause
    except UnicodeDecodeError as cause:
        raise CliError(f"{path} is not text in UTF-8; encode it first (base64)") from cause


def _send(
    call: Call, method: str, path: str, variable: dict[str, Any], query: dict[str, Any]
) -> Answered:
    import json

    try:
        data = json.dumps(variable).encode()
        data.decode("ascii")
    except UnicodeError as cause:
        raise CliError("a value is not text in UTF-8; encode it first (base64)") from cause
    return call.client.raw(method, path, data=data, query=query)


def _explain_conflict(answer: Answered, check: int | None, *, force: bool) -> NoReturn:
    import json

    other = json.loads(answer.body)
    there = other["ModifyIndex"]
    if check is None or (not there and not check):
        raise CliError(
            f'The variable "{other["Path"]}" is locked; only the holder of its lock can change it'
        )
    if not there:
        # A lock hides what is there.
        raise CliError(
            f"The check index {check} does not hold: there is no such variable, or it is locked"
        )
    ways = f"-check-index={there}" + (" or -force" if force else "")
    raise CliError(
        f"The check index {check} does not hold: the variable on the server has index {there}"
        f" (written {stamp(other['ModifyTime'])}).\nIf you are sure, add {ways}."
    )


def _form(call: Call, forms: tuple[str, ...], default: str) -> str:
    form = call.options.text("out") or default
    if form == "go-template":
        raise UsageError("-out=go-template is not part of this version: use json")
    if form not in forms:
        raise UsageError(f'-out is one of {", ".join(forms)}, not "{form}"')
    return form


def _usual(on_a_terminal: str) -> str:
    """For people on a terminal, JSON for programs."""
    return on_a_terminal if sys.stdout.isatty() else "json"
