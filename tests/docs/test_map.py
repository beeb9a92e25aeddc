"""What documents point at exists: links, headings, paths, targets of ./run, error texts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_blocks import DOCUMENTS, ROOT, anchors_of, links_of, name_of, prose_of

from nomadpy.cli.main import ALIASES, COMMANDS

SOURCES = [
    path.read_text(encoding="utf-8")
    for folder in ("nomadpy", "agent")
    for path in (ROOT / folder).rglob("*.py")
]
# String literals that are split over lines read as one text.
JOINED = [re.sub(r'"\s*\n\s*f?"', "", text) for text in SOURCES]
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?:nomadpy|agent|tests|docs|config|bench)/[\w./-]*")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    for link in links_of(document):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        target = (document.parent / place).resolve() if place else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_paths_exist(document: Path) -> None:
    for code in CODE.findall(prose_of(document)):
        for path in PATH.findall(code) if PATH.fullmatch(code) else []:
            if "NAME" not in path:
                assert (ROOT / path.rstrip("/")).exists(), f"{name_of(document)}: {path}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_targets_of_run_and_commands_exist(document: Path) -> None:
    targets = set(re.findall(r"^    (\w+)\) #", (ROOT / "run").read_text("utf-8"), re.MULTILINE))
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\./run ([a-z]\w*)", text):
        assert target in targets, target
    first_words = {name.split()[0] for name in (*COMMANDS, *ALIASES)}
    for words in re.findall(r"`nomadpy ([a-z][\w -]*)", text):
        assert words.split()[0] in first_words, words


def test_the_map_is_short_and_every_name_in_it_exists() -> None:
    document = ROOT / "ARCHITECTURE.md"
    text = document.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    named = {path.rstrip("/.") for path in PATH.findall(text)}
    assert len(named) > 60
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_every_error_of_the_troubleshooting_table_is_one_we_print() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|", text[text.index("## Troubleshooting") :], re.MULTILINE)
    assert len(rows) > 15
    # A log line is a message and its fields.
    texts = [row.partition(": address=")[0] for row in rows]
    missing = [row for row in texts if not any(row in source for source in JOINED)]
    assert missing == []


def test_paths_of_the_api_that_were_left_out_are_not_there() -> None:
    text = (ROOT / "docs" / "decisions" / "0009-what-was-left-out.md").read_text(encoding="utf-8")
    left_out = re.findall(r"^\| `(/v1/[^`]+)` \|", text, re.MULTILINE)
    assert len(left_out) > 3
    served = "\n".join(path.read_text("utf-8") for path in (ROOT / "nomadpy/api").glob("*.py"))
    assert [path for path in left_out if f'"{path}"' in served] == []


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = links_of(folder / "README.md")
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert [link for link in listed if link[0].isdigit()] == pages
    for number, page in enumerate(pages, 1):
        text = (folder / page).read_text(encoding="utf-8")
        assert page.startswith(f"{number:04d}-")
        assert text.startswith(f"# {number}. ")
        assert "**Context.**" in text
        assert "**Decision.**" in text or page == "0009-what-was-left-out.md"
        assert "**Consequences.**" in text
