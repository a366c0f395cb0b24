"""No bytes, however wrong, make the packet path raise or touch what lies outside the frame."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packet_frames import Bytes, Frame, Headers, as_array, examples, frames, parsed

from nicmodel.jit.compiled import JIT_DISABLED
from nicmodel.packet.checksum import complete, pseudo, verify
from nicmodel.packet.coalesce import AGGREGATE, continues, mergeable, open_aggregate, same_flow
from nicmodel.packet.headers import L3, L4
from nicmodel.packet.match import GROUP, RULE, SLOT, FlowType, index_rules, match, slots_for
from nicmodel.packet.rss import flow_hash, toeplitz_table
from nicmodel.packet.segment import segment_header
from nicmodel.packet.split import split_point

TABLE = toeplitz_table(np.arange(40, dtype=np.uint8))
#: One rule of each flow type, which asks for one bit of every address.
RULES = np.zeros(len(FlowType), RULE)
RULES["flow_type"] = list(FlowType)
RULES["source_mask"] = 1
RULES["destination_mask"] = 1
GROUPS, SLOTS = np.zeros(len(RULES), GROUP), np.zeros(slots_for(len(RULES)), SLOT)
GROUPS = GROUPS[: index_rules(RULES, np.arange(len(RULES), dtype=np.int32), GROUPS, SLOTS)]


@st.composite
def wrong_frames(draw: st.DrawFn) -> bytes:
    """Random bytes, or a valid frame with some bytes changed and perhaps cut short."""
    if draw(st.booleans()):
        types = st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00\x00\x01\x08\x00", b""])
        return draw(st.binary(min_size=12, max_size=12)) + draw(types) + draw(st.binary(max_size=120))
    frame: Frame = draw(frames())
    whole = bytearray(bytes(frame))
    # Headers are where a wrong byte matters.
    for place in draw(st.lists(st.integers(12, min(len(whole), 120) - 1), max_size=4)):
        whole[place] = draw(st.integers(0, 255))
    return bytes(whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole)


def everything(data: Bytes, offset: int, length: int) -> tuple[object, ...]:
    """All that the packet path says of a frame, and the bytes that it makes of it."""
    headers = parsed(data, offset, length)
    said = (
        headers.tobytes(), flow_hash(data, offset, headers, 0x1FF, TABLE), verify(data, offset, headers),
        split_point(headers, 128), match(GROUPS, SLOTS, data, offset, headers), repeated(data, offset, headers),
    )  # fmt: skip
    complete(data, offset, headers, True)
    completed = data[offset : offset + length].tobytes()
    pseudo(data, offset, headers)
    partial = data[offset : offset + length].tobytes()
    payload = int(headers[0]["length"]) - int(headers[0]["payload"])
    segment_header(data, offset, headers, 0, payload, 1, False, False)
    complete(data, offset, headers, False)
    return (*said, completed, partial, data[offset : offset + length].tobytes())


def repeated(data: Bytes, offset: int, headers: Headers) -> tuple[object, ...]:
    """What coalescing says of the frame, and of the same frame once more."""
    if not mergeable(data, offset, headers):
        return ()
    aggregates = np.zeros(1, AGGREGATE)
    aggregate: Any = aggregates.view(np.recarray)[0]
    open_aggregate(aggregate, offset, headers, 1, 0)
    assert same_flow(data, offset, headers, 1, aggregate)
    assert not continues(data, offset, headers, aggregate)
    return (aggregates.tobytes(),)


@examples
@given(frame=wrong_frames())
def test_headers_lie_inside_the_frame(frame: bytes) -> None:
    headers = parsed(as_array(frame))
    h = headers[0]
    assert 0 <= h["l3_offset"] <= h["l4_offset"] <= h["payload"] <= h["length"] <= len(frame)
    if h["address_size"]:
        assert h["l3_offset"] < h["source"] < h["destination"] <= h["l4_offset"] - h["address_size"]
        assert h["destination"] <= h["final_destination"] <= h["l4_offset"] - h["address_size"]
    else:
        assert h["l3"] in (L3.UNKNOWN, L3.OTHER)
    if h["fragment"] or h["malformed"]:
        assert (h["l4"], h["ports"], h["has_spi"]) == (L4.UNKNOWN, 0, 0)
    assert -1 <= split_point(headers, 128) <= 128


@examples
@given(frame=wrong_frames(), before=st.integers(1, 40), after=st.integers(1, 40))
def test_what_lies_around_a_frame_neither_matters_nor_changes(frame: bytes, before: int, after: int) -> None:
    results = []
    for canary in (b"\x00", b"\xff", b"\x45"):
        around = (canary * before, canary * after)
        data = as_array(around[0] + frame + around[1])
        results.append(everything(data, before, len(frame)))
        assert (data[:before].tobytes(), data[before + len(frame) :].tobytes()) == around
    assert results[0] == results[1] == results[2]


@examples
@given(frame=wrong_frames())
def test_exactly_the_bytes_of_the_frame_are_enough(frame: bytes) -> None:
    """Interpreted, any access outside the array raises."""
    everything(as_array(frame), 0, len(frame))


@pytest.mark.long
@pytest.mark.skipif(JIT_DISABLED, reason="is what this test runs")
@pytest.mark.timeout(900)  # many tests, uncompiled, in one process
def test_interpreted_code_passes_the_same_tests() -> None:
    """With the interpreter's bounds checks, and one compiler fewer between the source and the result."""
    files = sorted(str(path) for path in Path(__file__).parent.glob("test_packet_*.py"))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
