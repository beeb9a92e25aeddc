"""Read documents: fenced blocks with their language, line and marks, headings with their anchors, links."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("config/*.md"))
    if path.is_file()
)

_FENCE = re.compile(r"^(`{3,})(\w*)\s*$")
_COMMENT = re.compile(r"^<!--\s*(.*?)\s*-->$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block. mark: the HTML comment before it, "" without; heading: the last one above it."""

    document: Path
    line: int
    language: str
    text: str
    mark: str
    heading: str

    @property
    def place(self) -> str:
        """`docs/operations.md:12`."""
        return f"{name_of(self.document)}:{self.line}"


def name_of(document: Path) -> str:
    """The document's path below the repository."""
    return document.relative_to(ROOT).as_posix()


def blocks_of(document: Path) -> list[Block]:
    """Every fenced block, in order. Raises ValueError for one that does not end."""
    found: list[Block] = []
    inside: list[str] | None = None
    fence, language, begins, mark, heading = "", "", 0, "", ""
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if inside is not None:
            if line.rstrip() == fence:
                text = "\n".join(inside) + "\n"
                found.append(Block(document, begins, language, text, mark, heading))
                inside, mark = None, ""
            else:
                inside.append(line)
        elif opened := _FENCE.match(line):
            fence, language, begins, inside = opened[1], opened[2], number, []
        elif comment := _COMMENT.match(line.strip()):
            mark = comment[1]
        elif line.strip():
            mark = ""
            if line.startswith("#"):
                heading = line.lstrip("#").strip()
    if inside is not None:
        raise ValueError(f"{name_of(document)}:{begins}: the block does not end")
    return found


def comments_of(document: Path) -> list[str]:
    """Every HTML comment that stands alone on its line."""
    lines = document.read_text(encoding="utf-8").splitlines()
    return [found[1] for line in lines if (found := _COMMENT.match(line.strip()))]


def prose_of(document: Path) -> str:
    """The text without fenced blocks."""
    kept: list[str] = []
    fence = ""
    for line in document.read_text(encoding="utf-8").splitlines():
        opened = _FENCE.match(line)
        if fence:
            fence = "" if line.rstrip() == fence else fence
        elif opened:
            fence = opened[1]
        else:
            kept.append(line)
    return "\n".join(kept)


def links_of(document: Path) -> list[str]:
    """The targets of all links in the prose."""
    return _LINK.findall(prose_of(document))


def anchors_of(document: Path) -> set[str]:
    """The anchors of all headings, as code hosts make them."""
    headings = re.findall(r"^#+\s+(.*)$", prose_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
