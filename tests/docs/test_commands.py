"""Every command in the documents, run in order, in one shell for each document."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from doc_blocks import DOCUMENTS, blocks_of, name_of
from doc_shell import SHELL_LANGUAGES, commands_of, namespaces, run, script_of

WITH_COMMANDS = [
    document
    for document in DOCUMENTS
    if any(
        block.language in SHELL_LANGUAGES and not block.mark.startswith("not run:")
        for block in blocks_of(document)
    )
]
# Only what runs all tests, these included, or needs files outside the repository.
NOT_RUN = {"README.md": 1, "CONTRIBUTING.md": 1, "config/README.md": 1, "docs/operations.md": 2}


Runs = dict[Path, Future[tuple[int, str]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """All documents at once where each has its own network: their commands wait more than they work."""
    with ThreadPoolExecutor(len(WITH_COMMANDS) if namespaces() else 1) as pool:
        yield {
            document: pool.submit(run, script_of(document), tmp_path_factory.mktemp("document"))
            for document in WITH_COMMANDS
        }


@pytest.mark.real_time
@pytest.mark.parametrize("document", WITH_COMMANDS, ids=name_of)
def test_every_command_of_the_document_works(document: Path, runs: Runs) -> None:
    status, output = runs[document].result()
    assert status == 0, f"{name_of(document)}: exit code {status}\n{output[-6000:]}"


def test_few_blocks_are_left_out_and_each_says_why() -> None:
    left_out: dict[str, int] = {}
    for document in DOCUMENTS:
        for block in blocks_of(document):
            if block.mark.startswith("not run:"):
                assert len(block.mark.removeprefix("not run:").split()) > 3, block.place
                name = name_of(document)
                left_out[name] = left_out.get(name, 0) + 1
    assert left_out == NOT_RUN


def test_commands_hold_no_placeholders() -> None:
    for document in WITH_COMMANDS:
        for block in blocks_of(document):
            if block.language in SHELL_LANGUAGES:
                text = commands_of(block)
                assert "<your" not in text, block.place
                assert "..." not in text, block.place
                assert "ALLOC_ID" not in text, block.place
