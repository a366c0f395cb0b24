"""CRC32C, the digest of iSCSI and NVMe/TCP: Castagnoli's polynomial 0x1EDC6F41, bits reflected, inverted at both ends.

Eight bytes a step, with a table for each of them ("slicing by 8"). Source: RFC 3720, section 12.1 and appendix B.4,
which has the test vectors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.jit.addresses import load_u8, load_u32
from nicmodel.jit.compiled import compiled, i64, inlined, u64

_REFLECTED = 0x82F63B78


def _tables() -> npt.NDArray[np.uint32]:
    """Row k, column b: what byte b does to the CRC when k more bytes come after it; shape (8, 256)."""
    tables = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_REFLECTED if value & 1 else 0)
        tables[0, byte] = value
    for row in range(1, 8):
        before = tables[row - 1]
        tables[row] = before >> 8 ^ tables[0][before & 0xFF]
    return tables


_TABLES = _tables()


@inlined
def _step(low: int, high: int) -> int:
    """The CRC's register after eight bytes; `low` are the first four, with the register before them added."""
    return (
        i64(_TABLES[7, low & 0xFF])
        ^ i64(_TABLES[6, low >> 8 & 0xFF])
        ^ i64(_TABLES[5, low >> 16 & 0xFF])
        ^ i64(_TABLES[4, low >> 24])
        ^ i64(_TABLES[3, high & 0xFF])
        ^ i64(_TABLES[2, high >> 8 & 0xFF])
        ^ i64(_TABLES[1, high >> 16 & 0xFF])
        ^ i64(_TABLES[0, high >> 24])
    )


@inlined
def _byte(register: int, byte: int) -> int:
    return i64(_TABLES[0, (register ^ byte) & 0xFF]) ^ register >> 8


@compiled
def crc32c(crc: int, address: int, count: int) -> int:
    """CRC32C of bytes in this process that follow those whose CRC32C is `crc`; of no bytes it is 0.

    Args:
        crc: of all bytes before.
        address: of the first byte, unsigned.
        count: bytes.
    """
    register = i64(crc) ^ 0xFFFFFFFF
    position = u64(address)
    left = i64(count)
    while left >= 8:
        register = _step(i64(load_u32(position)) ^ register, i64(load_u32(position + u64(4))))
        position += u64(8)
        left -= 8
    while left > 0:
        register = _byte(register, i64(load_u8(position)))
        position += u64(1)
        left -= 1
    return register ^ 0xFFFFFFFF


@inlined
def crc32c_words(words: npt.NDArray[np.uint32], count: int) -> int:
    """CRC32C of the first `count` of little-endian words, an even number of them."""
    register = i64(0xFFFFFFFF)
    for k in range(0, count, 2):
        register = _step(i64(words[k]) ^ register, i64(words[k + 1]))
    return register ^ 0xFFFFFFFF
