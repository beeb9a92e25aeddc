"""What a command is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from nomadpy.cli.errors import CliError, UsageError
from nomadpy.cli.flags import Flag, Options, help_lines, parse, text

if TYPE_CHECKING:
    from nomadpy.cli.client import Client

GENERAL = (
    text(
        "address",
        "The agent's address. Overrides NOMAD_ADDR; http://127.0.0.1:4646 without both.",
        "addr",
    ),
    text("region", "The region to ask. Overrides NOMAD_REGION.", "region"),
    text(
        "namespace",
        "The namespace to ask; * is all of them where a list is shown. Overrides NOMAD_NAMESPACE.",
        "namespace",
    ),
    text("token", "The token of the request. Overrides NOMAD_TOKEN.", "token"),
    text(
        "ca-cert",
        "File with the CA that signed the agent's certificate. Overrides NOMAD_CACERT.",
        "path",
    ),
    text("ca-path", "Folder with CA certificates. Overrides NOMAD_CAPATH.", "path"),
    text("client-cert", "File with the client certificate. Overrides NOMAD_CLIENT_CERT.", "path"),
    text("client-key", "File with its key. Overrides NOMAD_CLIENT_KEY.", "path"),
    text(
        "tls-server-name",
        "The name the agent's certificate must have. Overrides NOMAD_TLS_SERVER_NAME.",
        "name",
    ),
    Flag("tls-skip-verify", "Do not check the agent's certificate. Overrides NOMAD_SKIP_VERIFY."),
    Flag("no-color", "Accepted; output has no colours."),
    Flag("force-color", "Accepted; output has no colours."),
)

JSON = Flag("json", "Print the API's JSON.")
VERBOSE = Flag("verbose", "Show whole ids and more columns.")
DETACH = Flag("detach", "Return at once instead of monitoring; the evaluation's id is printed.")


class Call:
    """One run of a command: its flags, its operands and the agent it talks to."""

    def __init__(self, options: Options, operands: list[str]) -> None:
        self.options = options
        self.operands = operands

    @cached_property
    def client(self) -> Client:
        """The HTTP client, made when it is first needed."""
        from nomadpy.cli.client import Client, settings_from

        return Client(settings_from(self.options))

    def operand(self, place: int = 0) -> str:
        """The operand at a place, or ""."""
        return self.operands[place] if place < len(self.operands) else ""

    @property
    def id_length(self) -> int:
        """How much of an id is shown."""
        return 36 if self.options.on("verbose") else 8


class Command(NamedTuple):
    """One command. operands: (least, most), most None is any number."""

    usage: str
    help: str
    flags: tuple[Flag, ...]
    operands: tuple[int, int | None]
    function: Callable[[Call], int]
    general: bool = True
    flags_end_after: int | None = None
    error_status: int = 1

    def run(self, line: list[str]) -> int:
        """Parse the line and run. Raises CliError with the command's own error status."""
        if any(word in ("-h", "-help", "--help") for word in self._own_words(line)):
            print(self.help_text())
            return 0
        try:
            options, operands = parse(self.all_flags, line, flags_end_after=self.flags_end_after)
            least, most = self.operands
            if len(operands) < least or (most is not None and len(operands) > most):
                raise UsageError(f"This command takes {_count(least, most)}: {self.usage}")
            return self.function(Call(options, operands))
        except UsageError as error:
            hint = f"For additional help try 'nomadpy {self.name} -help'"
            raise CliError(f"{error}\n{hint}", status=self.error_status) from error
        except CliError as error:
            if error.status == 1:
                error.status = self.error_status
            raise

    @property
    def name(self) -> str:
        """The words that call it."""
        return " ".join(w for w in self.usage.split() if not w.startswith(("[", "<", "-")))

    @property
    def all_flags(self) -> tuple[Flag, ...]:
        """Its own flags, and the general ones of every command that asks an agent."""
        return (*self.flags, *GENERAL) if self.general else self.flags

    def help_text(self) -> str:
        """What -help prints."""
        lines = [f"Usage: nomadpy {self.usage}", "", *_indented(self.help), ""]
        if self.flags:
            lines += ["Options:", "", *help_lines(self.flags)]
        if self.general:
            lines += ["General Options:", "", *help_lines(GENERAL)]
        return "\n".join(lines).rstrip()

    def _own_words(self, line: list[str]) -> list[str]:
        """The words before `--`, and before the command that is to be run elsewhere."""
        own = line[: line.index("--")] if "--" in line else line
        if self.flags_end_after is None:
            return own
        try:
            _, operands = parse(
                (*self.all_flags, Flag("h", ""), Flag("help", "")),
                own,
                flags_end_after=self.flags_end_after,
            )
        except UsageError:
            return own
        return own[: len(own) - max(len(operands) - self.flags_end_after, 0)]


def command(
    usage: str,
    help_: str,
    *,
    flags: tuple[Flag, ...] = (),
    operands: tuple[int, int | None] = (0, 0),
    **more: Any,
) -> Callable[[Callable[[Call], int]], Command]:
    """Make a function a command."""

    def made(function: Callable[[Call], int]) -> Command:
        return Command(usage, help_, flags, operands, function, **more)

    return made


def _indented(text_: str) -> list[str]:
    return [f"  {line}".rstrip() for line in text_.strip().splitlines()]


def _count(least: int, most: int | None) -> str:
    words = {0: "no arguments", 1: "one argument", 2: "two arguments"}
    if most is None:
        return f"at least {words.get(least, str(least))}" if least else "any arguments"
    if least == most:
        return words.get(least, f"{least} arguments")
    if (least, most) == (0, 1):
        return "either no arguments or one"
    return f"{least} to {most} arguments"
