"""The guest's image: the cpio archive."""

import io
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from nicmodel.vm.image import MODULES, Entry, write_cpio


def members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content by name, read as cpio(5) describes the newc format; the trailer must be the last member."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert start == len(archive)
            return found
        found[name] = (mode, archive[start : start + size])
        at = (start + size + 3) // 4 * 4
    pytest.fail("no trailer")


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("to/nowhere")
    return [
        Entry("etc", stat.S_IFDIR | 0o755),
        Entry("etc/file", stat.S_IFREG | 0o640, tmp_path / "file"),
        Entry("link", stat.S_IFLNK | 0o777, tmp_path / "link"),
    ]


def test_cpio(entries: list[Entry]) -> None:
    file = io.BytesIO()
    write_cpio(file, entries)
    assert len(file.getvalue()) % 4 == 0
    assert members(file.getvalue()) == {
        "etc": (0o40755, b""),
        "etc/file": (0o100640, b"12345"),
        "link": (0o120777, b"to/nowhere"),
    }


@pytest.mark.parametrize("size", range(9))
def test_cpio_pads_names_and_contents(tmp_path: Path, size: int) -> None:
    content = bytes(range(size))
    (tmp_path / "file").write_bytes(content)
    file = io.BytesIO()
    write_cpio(file, [Entry("n" * (size + 1), stat.S_IFREG | 0o644, tmp_path / "file")])
    assert members(file.getvalue()) == {"n" * (size + 1): (0o100644, content)}


@pytest.mark.skipif(not shutil.which("busybox") and not shutil.which("cpio"), reason="neither cpio nor busybox")
def test_cpio_is_what_others_read(tmp_path: Path, entries: list[Entry]) -> None:
    file = io.BytesIO()
    write_cpio(file, entries)
    command = ["cpio"] if shutil.which("cpio") else ["busybox", "cpio"]
    target = tmp_path / "out"
    target.mkdir()
    subprocess.run([*command, "-id"], input=file.getvalue(), cwd=target, check=True)
    assert (target / "etc/file").read_bytes() == b"12345"
    assert os.readlink(target / "link") == "to/nowhere"


def test_modules_are_named_once_and_as_the_kernel_does() -> None:
    assert len(set(MODULES)) == len(MODULES)
    assert not [name for name in MODULES if "-" in name]
