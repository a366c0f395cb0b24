"""Addresses of stations, 48 bits."""

from __future__ import annotations

import re
import secrets


def random_mac() -> bytes:
    """A locally administered unicast address."""
    first, *rest = secrets.token_bytes(6)
    return bytes([first & 0xFC | 0x02, *rest])


def parse_mac(text: str) -> bytes:
    """The six bytes of ``02:00:00:00:00:01``.

    Raises:
        ValueError: not the form, or a multicast address.
    """
    if not re.fullmatch(r"([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}", text):
        raise ValueError(f"{text!r} is not a MAC address of the form 02:00:00:00:00:01")
    mac = bytes.fromhex(re.sub("[:-]", "", text))
    if mac[0] & 1:
        raise ValueError(f"{text} is a multicast address; the first byte of a station's address is even")
    return mac


def check_mac(mac: bytes) -> None:
    """See that a station can have this address.

    Raises:
        ValueError: it cannot.
    """
    if len(mac) != 6 or mac[0] & 1:
        raise ValueError("a MAC address has six bytes, the first of them even")
