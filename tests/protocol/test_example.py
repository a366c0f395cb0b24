"""The example of the README is a device that works."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from nicmodel.vfio_user import Client, PciRegion


def test_example(tmp_path: Path) -> None:
    path = str(tmp_path / "example.sock")
    process = subprocess.Popen([sys.executable, "-m", "nicmodel.vfio_user.example", path])
    try:
        deadline = time.monotonic() + 60
        while not os.path.exists(path):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with Client(path) as client:
            assert client.region_read(PciRegion.CONFIG, 0, 4) == bytes.fromhex("34127856")
            assert [client.region_info(index).size for index in PciRegion] == [4096, 0, 0, 0, 0, 0, 0, 256, 0]
            client.region_write(PciRegion.BAR0, 0x10, b"kept", posted=True)
            assert client.region_read(PciRegion.BAR0, 0x10, 4) == b"kept"
        process.terminate()
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()
    assert not os.path.exists(path)
