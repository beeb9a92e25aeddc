"""Every configuration and every job that the documents show."""

from __future__ import annotations

import pytest
from doc_blocks import DOCUMENTS, ROOT, Block, blocks_of

from nomadpy.config.load import load_text, unused_settings
from nomadpy.jobspec.canonicalize import canonicalize
from nomadpy.jobspec.parse import parse
from nomadpy.jobspec.validate import validate, warnings

BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
KNOWN = {"sh", "console", "hcl", "json", "yaml", "text"}
EXAMPLES = sorted((ROOT / "docs" / "examples").iterdir())


def check_job(text: str, name: str) -> None:
    job = canonicalize(parse(text, name=name), region="global")
    assert validate(job) == []
    assert warnings(job) == []


def test_every_block_says_its_language() -> None:
    assert {block.place: block.language for block in BLOCKS if block.language not in KNOWN} == {}


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "hcl"], ids=lambda b: b.place)
def test_every_configuration_loads_and_nothing_in_it_is_without_effect(block: Block) -> None:
    assert unused_settings(load_text(block.text)) == []


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language in ("json", "yaml")], ids=lambda b: b.place
)
def test_every_job_in_a_document_is_valid(block: Block) -> None:
    check_job(block.text, f"job.{block.language}")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_every_example_is_a_valid_job(path: object) -> None:
    check_job(path.read_text(encoding="utf-8"), path.name)  # type: ignore[attr-defined]
