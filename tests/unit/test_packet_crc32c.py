"""CRC32C: published vectors, and any bytes against the definition, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nicmodel.jit.compiled import u64
from nicmodel.packet.crc32c import crc32c, crc32c_words

#: RFC 3720, appendix B.4, and the check value of the CRC catalogue.
VECTORS = {
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
    bytes.fromhex(
        "01c00000000000000000000000000000140000000000040000000014000000182800000000000000020000000000000000000000"
    )[:48]: 0xD9963A56,
    b"123456789": 0xE3069283,
    b"": 0,
}


def crc(data: bytes, before: int = 0, skip: int = 0) -> int:
    """Of bytes that are `skip` bytes off an aligned address."""
    array = np.frombuffer(bytes(skip) + data, np.uint8)
    return crc32c(before, u64(array.ctypes.data + skip), len(data))


def bitwise(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(("data", "expected"), VECTORS.items())
def test_vectors(data: bytes, expected: int) -> None:
    assert crc(data) == expected == bitwise(data)


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 7))
def test_in_two_steps(data: bytes, cut: int, skip: int) -> None:
    """Any bytes, in one step or in two, wherever they are."""
    assert crc(data, skip=skip) == crc(data[cut:], crc(data[:cut])) == bitwise(data)


@given(st.binary(min_size=24, max_size=24))
def test_words(data: bytes) -> None:
    assert crc32c_words(np.frombuffer(data, "<u4"), 6) == bitwise(data)
