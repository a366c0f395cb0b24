"""Files that users give may be anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nicmodel.vm.errors import VmError
from nicmodel.vm.saved import read_bounded, read_json


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"9" * 10_000])
def test_what_is_no_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(VmError, match=rf"^{re.escape(str(path))} is none$"):
        read_json(path, "is none")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="No such file"):
        read_bounded(tmp_path / "none")
    with pytest.raises(VmError, match="Is a directory"):
        read_bounded(tmp_path)


def test_what_has_no_end() -> None:
    with pytest.raises(VmError, match=r"^/dev/zero is larger than 1,000 bytes$"):
        read_bounded(Path("/dev/zero"), 1000)
    assert read_bounded(Path("/dev/null")) == b""
