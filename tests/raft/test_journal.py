"""The journal on a disk in memory: what a crash may take, and what must stop the start."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import CorruptionError
from nomadpy.raft.files import RealFiles
from nomadpy.raft.journal import SENTINEL, Journal, LogEntry, SafetyError
from nomadpy.simulator.disk import MemoryFiles

DIRECTORY = "/log"
SYNCED = f"{DIRECTORY}/synced"


def filled(files: MemoryFiles, batches: int = 6, **options) -> tuple[Journal, list[list[LogEntry]]]:
    """A journal of a few synced batches, and what the log was after each of them."""
    journal = Journal(files, DIRECTORY, **options)
    journal.set_hard_state(3, "s1")
    states: list[list[LogEntry]] = [[]]
    index = 0
    for batch in range(batches):
        if batch == 3:
            journal.truncate_from(index - 1)
            index -= 2
        for _ in range(3):
            index += 1
            journal.append(b"command %d" % index * (batch + 1), index, 1 + batch // 3)
        journal.sync()
        states.append(list(journal.entries))
    return journal, states


def segments(files: MemoryFiles) -> list[str]:
    return [path for path in files.paths() if "segment-" in path]


def copy_of(files: MemoryFiles, *, knows_how_far: bool = False) -> MemoryFiles:
    """A disk with the same files; without the note of how far the log was durable, as after a power cut that took it."""
    copy = MemoryFiles()
    copy.make_directory(DIRECTORY)
    for path in files.paths():
        if path == SYNCED and not knows_how_far:
            continue
        file = copy.append(path)
        file.write(files.read(path))
        file.sync()
    copy.sync_directory(DIRECTORY)
    return copy


def test_a_journal_reads_back_what_it_synced() -> None:
    files = MemoryFiles()
    journal, states = filled(files, segment_bytes=200)
    assert len(segments(files)) > 1
    again = Journal(files.killed(), DIRECTORY)
    assert again.entries == states[-1] == journal.entries
    assert (again.term, again.vote) == (3, "s1")


def test_a_cut_at_any_byte_of_the_last_segment_leaves_a_prefix() -> None:
    files = MemoryFiles()
    _, states = filled(files)
    (path,) = segments(files)
    whole = files.size(path)
    seen = set()
    for size in range(whole + 1):
        copy = copy_of(files)
        copy.truncate(path, size)
        again = Journal(copy, DIRECTORY)
        assert again.entries in states
        seen.add(states.index(again.entries))
        # What was cut off must not come back, and the journal goes on from there.
        again.append(b"next", again.last_index + 1, 9)
        again.set_hard_state(9, None)
        again.sync()
        third = Journal(copy, DIRECTORY)
        assert third.entries == again.entries
    assert seen == set(range(len(states)))


def test_a_cut_in_a_segment_that_is_not_the_last_stops_the_start() -> None:
    files = MemoryFiles()
    filled(files, segment_bytes=200)
    path = segments(files)[0]
    files.truncate(path, files.size(path) - 1)
    with pytest.raises(CorruptionError, match="newer segments follow"):
        Journal(files, DIRECTORY)


def test_a_missing_segment_stops_the_start() -> None:
    files = MemoryFiles()
    filled(files, batches=12, segment_bytes=100)
    files.remove(segments(files)[1])
    with pytest.raises(CorruptionError, match="missing"):
        Journal(files, DIRECTORY)


def test_any_damaged_byte_before_the_last_batch_stops_the_start_and_names_the_place() -> None:
    files = MemoryFiles()
    journal = Journal(files, DIRECTORY)
    starts = []
    for index in range(1, 6):
        starts.append(files.size(segments(files)[0]) if index > 1 else 16)
        journal.append(b"command %d" % index, index, 1)
        journal.set_hard_state(1, None)
        journal.sync()
    (path,) = segments(files)
    for offset in range(16, starts[-1]):
        copy = copy_of(files)
        copy.damage(path, offset, bytes([copy.read(path)[offset] ^ 0x40]))
        with pytest.raises(CorruptionError) as caught:
            Journal(copy, DIRECTORY)
        message = str(caught.value)
        assert path in message
        assert "let it join again" in message
        assert f"at byte {max(s for s in starts if s <= offset)}," in message


def test_a_damaged_byte_of_the_last_batch_is_a_torn_end() -> None:
    files = MemoryFiles()
    _, states = filled(files)
    (path,) = segments(files)
    files.damage(path, files.size(path) - 3, b"\xff")
    again = Journal(copy_of(files), DIRECTORY)
    assert again.entries == states[-2]
    assert again.torn_bytes > 0


def test_a_damaged_byte_of_the_last_batch_stops_the_start_when_it_is_known_to_have_been_durable() -> (
    None
):
    files = MemoryFiles()
    filled(files)
    (path,) = segments(files)
    size = files.size(path)
    files.damage(path, size - 3, b"\xff")
    with pytest.raises(CorruptionError) as caught:
        Journal(files, DIRECTORY)
    assert f"{path}: damaged at byte " in str(caught.value)
    assert f"up to byte {size} was on the disk once" in str(caught.value)


def test_a_cut_at_any_byte_stops_the_start_when_the_log_is_known_to_have_been_longer() -> None:
    files = MemoryFiles()
    _, states = filled(files)
    (path,) = segments(files)
    whole = files.size(path)
    for size in range(whole):
        copy = copy_of(files, knows_how_far=True)
        copy.truncate(path, size)
        with pytest.raises(CorruptionError, match=r"was on the disk once|valid record follows"):
            Journal(copy, DIRECTORY)
    copy = copy_of(files, knows_how_far=True)
    assert Journal(copy, DIRECTORY).entries == states[-1]
    files.remove(path)
    with pytest.raises(CorruptionError, match="newest segment is missing"):
        Journal(files, DIRECTORY)


@pytest.mark.parametrize("offset", range(24))
def test_a_damaged_note_of_how_far_says_nothing_and_is_written_anew(offset: int) -> None:
    files = MemoryFiles()
    _, states = filled(files)
    files.damage(SYNCED, offset, bytes([files.read(SYNCED)[offset] ^ 1]))
    again = Journal(files, DIRECTORY)
    assert again.entries == states[-1]
    files = files.power_cut(SeededEntropy(offset))
    (path,) = segments(files)
    files.truncate(path, files.size(path) - 1)
    with pytest.raises(CorruptionError, match="was on the disk once"):
        Journal(files, DIRECTORY)


def test_what_a_segments_header_says_of_its_first_index_is_not_believed() -> None:
    files = MemoryFiles()
    journal, _ = filled(files, segment_bytes=200)
    path = segments(files)[1]
    files.damage(path, 8, (1).to_bytes(8, "little"))
    again = Journal(files, DIRECTORY, segment_bytes=200)
    # Of the first segment something is still needed, whatever the second one's header says.
    again.compact(2, 2)
    again.sync()
    third = Journal(files, DIRECTORY)
    assert third.entries == journal.entries


def test_a_segment_with_a_header_only_is_made_anew() -> None:
    files = MemoryFiles()
    _, states = filled(files, segment_bytes=200)
    newest = segments(files)[-1]
    number = int(newest[-16:-4]) + 1
    file = files.append(f"{DIRECTORY}/segment-{number:012d}.log")
    file.write(b"NRSG\x01\x00\x00\x00" + (5).to_bytes(8, "little"))
    again = Journal(files, DIRECTORY, segment_bytes=200)
    assert again.entries == states[-1]
    assert segments(files)[-1] == newest


def test_zeros_after_the_end_are_cut() -> None:
    files = MemoryFiles()
    _, states = filled(files)
    (path,) = segments(files)
    file = files.append(path)
    file.write(bytes(5000))
    assert Journal(files, DIRECTORY).entries == states[-1]


def test_a_damaged_segment_header_before_valid_batches_stops_the_start() -> None:
    files = MemoryFiles()
    filled(files)
    files.damage(segments(files)[0], 1, b"?")
    with pytest.raises(CorruptionError, match="valid record follows"):
        Journal(copy_of(files), DIRECTORY)
    with pytest.raises(CorruptionError, match="damaged at byte 0, though"):
        Journal(files, DIRECTORY)


@pytest.mark.parametrize("offset", range(12))
def test_a_damaged_hard_state_stops_the_start(offset: int) -> None:
    files = MemoryFiles()
    filled(files)
    path = f"{DIRECTORY}/hard-state"
    files.damage(path, offset, bytes([files.read(path)[offset] ^ 1]))
    with pytest.raises(CorruptionError, match="term and vote"):
        Journal(files, DIRECTORY)


def test_a_missing_hard_state_beside_a_log_stops_the_start() -> None:
    files = MemoryFiles()
    filled(files)
    files.remove(f"{DIRECTORY}/hard-state")
    with pytest.raises(CorruptionError, match="could vote twice"):
        Journal(files, DIRECTORY)


def test_a_newer_format_is_refused_with_advice() -> None:
    files = MemoryFiles()
    filled(files)
    files.damage(segments(files)[0], 4, b"\x02")
    with pytest.raises(CorruptionError, match="newer program"):
        Journal(files, DIRECTORY)


def test_terms_and_votes_never_go_back() -> None:
    journal = Journal(MemoryFiles(), DIRECTORY)
    journal.set_hard_state(4, "a")
    with pytest.raises(SafetyError):
        journal.set_hard_state(3, None)
    with pytest.raises(SafetyError):
        journal.set_hard_state(4, "b")
    with pytest.raises(SafetyError):
        journal.set_hard_state(4, None)
    journal.set_hard_state(5, "b")


def test_entries_leave_no_gap_and_no_older_term() -> None:
    journal = Journal(MemoryFiles(), DIRECTORY)
    journal.append(b"a", 1, 2)
    with pytest.raises(SafetyError):
        journal.append(b"c", 3, 2)
    with pytest.raises(SafetyError):
        journal.append(b"b", 2, 1)


def test_compaction_keeps_a_tail_and_removes_old_segments() -> None:
    files = MemoryFiles()
    journal = Journal(files, DIRECTORY, segment_bytes=300)
    for index in range(1, 101):
        journal.append(b"command %d" % index, index, 1)
        journal.set_hard_state(1, None)
        journal.sync()
    before = len(segments(files))
    journal.compact(80, 60)
    journal.sync()
    assert journal.first_index == 80
    assert len(segments(files)) < before
    again = Journal(files, DIRECTORY)
    assert again.first_index <= 60
    assert again.entries[-21:] == journal.entries


def test_a_tail_is_bounded_by_entries_and_by_bytes() -> None:
    journal = Journal(MemoryFiles(), DIRECTORY)
    for index in range(1, 21):
        journal.append(b"x" * 10, index, 1)
    assert journal.command_bytes == 200
    assert journal.trailing(15, 5, 1000) == 10
    assert journal.trailing(15, 100, 1000) == 1
    assert journal.trailing(15, 100, 35) == 12
    assert journal.trailing(15, 100, 0) == 15
    journal.compact(11, 11)
    journal.truncate_from(16)
    assert journal.command_bytes == 50
    journal.set_hard_state(1, None)
    journal.reset(30, 1)
    assert journal.command_bytes == len(SENTINEL)


def test_a_reset_replaces_the_log_by_a_sentinel() -> None:
    files = MemoryFiles()
    journal, _ = filled(files)
    journal.reset(50, 4)
    journal.append(b"after", 51, 4)
    journal.set_hard_state(4, None)
    journal.sync()
    assert Journal(files, DIRECTORY).entries == [(SENTINEL, 50, 4), (b"after", 51, 4)]


def test_what_was_not_synced_is_not_there_after_a_crash() -> None:
    files = MemoryFiles()
    journal, states = filled(files)
    journal.append(b"lost", journal.last_index + 1, 3)
    assert journal.dirty
    assert Journal(files.power_cut(SeededEntropy(1)), DIRECTORY).entries == states[-1]


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_failed_sync_is_raised_and_acknowledged_entries_survive(operation: str) -> None:
    for seed in range(30):
        files = MemoryFiles()
        journal, states = filled(files)
        journal.append(b"x" * 500, journal.last_index + 1, 3)
        files.fail(operation, errno.ENOSPC)
        with pytest.raises(OSError, match="No space"):
            journal.sync()
        again = Journal(files.power_cut(SeededEntropy(seed)), DIRECTORY)
        assert again.entries in (states[-1], journal.entries)


def test_what_a_killed_process_wrote_and_did_not_sync_is_durable_once_it_was_read() -> None:
    for operation in ("sync", "sync_directory"):
        for seed in range(20):
            files = MemoryFiles()
            journal, _ = filled(files)
            journal.append(b"read back", journal.last_index + 1, 3)
            journal.set_hard_state(4, "s2")
            files.fail(operation, errno.EIO, where=lambda path: "tmp" not in path)
            with pytest.raises(OSError, match="error"):
                journal.sync()
            files = files.killed()
            again = Journal(files, DIRECTORY)
            third = Journal(files.power_cut(SeededEntropy(seed)), DIRECTORY)
            assert third.entries == again.entries
            assert (third.term, third.vote) == (again.term, again.vote)


def test_the_real_disk_behaves_like_the_one_in_memory(tmp_path) -> None:  # type: ignore[no-untyped-def]
    directory = str(tmp_path / "raft" / "log")
    journal = Journal(RealFiles(), directory, segment_bytes=100)
    journal.set_hard_state(2, "me")
    for index in range(1, 21):
        journal.append(b"c%d" % index, index, 2)
        journal.sync()
    journal.compact(15, 10)
    journal.sync()
    journal.close()
    again = Journal(RealFiles(), directory)
    assert again.entries[-6:] == journal.entries
    assert (again.term, again.vote) == (2, "me")
    again.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.binary(max_size=40)),
        st.tuples(st.just("truncate"), st.integers(1, 5)),
        st.tuples(st.just("reset"), st.integers(0, 5)),
        st.tuples(st.just("compact"), st.integers(0, 4)),
        st.tuples(st.just("term"), st.sampled_from(["a", "b", None])),
        st.tuples(st.just("sync"), st.just(0)),
        st.tuples(st.just("power cut"), st.integers(0, 1 << 30)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_after_any_history_a_restart_finds_the_last_synced_state(steps) -> None:  # type: ignore[no-untyped-def]
    files = MemoryFiles()
    journal = Journal(files, DIRECTORY, segment_bytes=150)
    synced: tuple[list[LogEntry], int, str | None] = ([], 0, None)
    first = 0
    for step, value in steps:
        if step == "append":
            if journal.term == 0:
                journal.set_hard_state(1, None)
            journal.append(value, journal.last_index + 1, max(journal.term, journal.last_term))
        elif step == "truncate":
            if len(journal.entries) > value:
                journal.truncate_from(journal.last_index - value + 1)
        elif step == "reset":
            if journal.term == 0:
                journal.set_hard_state(1, None)
            journal.reset(journal.last_index + value, journal.term)
            first = journal.first_index
        elif step == "compact":
            if len(journal.entries) > value:
                first = journal.first_index + value
                journal.compact(first, first)
        elif step == "term":
            journal.set_hard_state(journal.term + 1, value)
        elif step == "sync":
            journal.sync()
            synced = (list(journal.entries), journal.term, journal.vote)
        else:
            files = files.power_cut(SeededEntropy(value))
            journal = Journal(files, DIRECTORY, segment_bytes=150)
            # Compaction drops whole segments: more than the tail may come back, never less.
            expected = list(synced[0])
            tail = journal.entries[-len(expected) :] if expected else []
            assert tail == expected or [e for e in expected if e[1] >= first] == tail
            assert (journal.term, journal.vote) == synced[1:]
            synced = (list(journal.entries), journal.term, journal.vote)
            first = journal.first_index
