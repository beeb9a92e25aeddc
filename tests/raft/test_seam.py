"""The seam holds one exact source of PySyncObj."""

from __future__ import annotations

import inspect
import sys

import pytest

from nomadpy.raft.messages import AppendEntries, FrameDecoder, encode_frame
from nomadpy.raft.pysyncobj_seam import PYSYNCOBJ_VERSION, check_pysyncobj


def test_another_version_or_source_is_refused_with_advice() -> None:
    source = inspect.getsource(sys.modules["pysyncobj.syncobj"])
    check_pysyncobj(PYSYNCOBJ_VERSION, source)
    for version, text in (("0.3.18", source), (PYSYNCOBJ_VERSION, source + "\n")):
        with pytest.raises(RuntimeError, match=r"pip install pysyncobj==0\.3\.17"):
            check_pysyncobj(version, text)


def test_frames_survive_any_cut_and_bad_ones_are_refused() -> None:
    message = AppendEntries(3, 2, 1, 7, 2, [(3, b"\x00" * 50), (3, b"")])
    data = encode_frame(message) * 3
    for step in (1, 7, 1000):
        decoder = FrameDecoder()
        found = []
        for start in range(0, len(data), step):
            found += decoder.feed(data[start : start + step])
        assert [m for _, m in found] == [message] * 3
    for bad in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\x00", b"\x00\x00\x00\x02\x91\x63"):
        with pytest.raises(ValueError, match="raft frame"):
            FrameDecoder().feed(bad)
