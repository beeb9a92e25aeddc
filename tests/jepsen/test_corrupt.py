"""Damage to files, as the nemeses do it, and what a server's own start makes of it; power cuts that must be found out."""

from __future__ import annotations

from pathlib import Path

import pytest
from jepsen_style.nemesis.corrupt import DAMAGES, SAYS_WHAT_TO_DO, flip, truncate, zero
from jepsen_style.nemesis.registry import NEMESES, family_of

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import CorruptionError
from nomadpy.raft.files import RealFiles
from nomadpy.raft.journal import Journal


@pytest.mark.parametrize("seed", range(20))
def test_a_flip_changes_one_bit_a_cut_the_end_and_zeros_a_page(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "file"
    before = bytes([0xA5]) * 9000
    source = SeededEntropy(seed)

    file.write_bytes(before)
    assert file.name in flip(file, source)
    after = file.read_bytes()
    assert len(after) == len(before)
    assert sum((a ^ b).bit_count() for a, b in zip(before, after, strict=True)) == 1

    file.write_bytes(before)
    truncate(file, source)
    assert before.startswith(file.read_bytes())
    assert file.stat().st_size < len(before)

    file.write_bytes(before)
    zero(file, source)
    after = file.read_bytes()
    assert len(after) == len(before)
    assert 0 < after.count(0) <= 4096
    assert after.replace(b"\0", b"").strip(b"\xa5") == b""


@pytest.mark.parametrize("damage", sorted(DAMAGES))
@pytest.mark.parametrize("seed", range(25))
def test_a_damaged_log_is_read_in_full_or_refused_with_what_to_do(
    tmp_path: Path, damage: str, seed: int
) -> None:
    directory = tmp_path / "log"
    journal = Journal(RealFiles(), str(directory), segment_bytes=4000)
    journal.set_hard_state(1, "me")
    for index in range(1, 60):
        journal.append(b"x" * (index * 37 % 300), index, 1)
        journal.sync()
    journal.close()
    whole = list(journal.entries)
    source = SeededEntropy(f"{damage}/{seed}")
    file = source.choice(sorted(directory.glob("segment-*.log")))
    words = DAMAGES[damage](file, source)
    refusal = ""
    try:
        again = Journal(RealFiles(), str(directory))
    except CorruptionError as error:
        refusal = error.message
    else:
        # A bit of a header that nobody believes.
        assert again.entries == whole, words
        again.close()
    if refusal:
        assert str(directory) in refusal
        assert any(advice in refusal for advice in SAYS_WHAT_TO_DO)


def test_whatever_ends_processes_waits_for_others_that_do() -> None:
    for name in NEMESES:
        if name.startswith(("power", "corrupt-log", "membership-re", "disk-eio", "lying")):
            assert family_of(name) == "processes", name
    assert family_of("disk-slow-one") == "disk-slow"
