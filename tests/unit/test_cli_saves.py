"""Waiting for a folder to be changed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from nicmodel.cli.saves import Saves


@pytest.mark.parametrize("how", ["write", "rename", "delete", "new folder"])
def test_each_way_to_save_wakes_the_waiter(tmp_path: Path, how: str) -> None:
    file = tmp_path / "driver.c"
    file.write_text("old")
    with Saves(tmp_path) as saves:
        waiter = threading.Thread(target=saves.wait)
        waiter.start()
        if how == "write":
            file.write_text("new")
        elif how == "rename":  # as editors do
            (tmp_path / ".driver.c.new").write_text("new")
            (tmp_path / ".driver.c.new").rename(file)
        elif how == "delete":
            file.unlink()
        else:
            (tmp_path / "more").mkdir()
        waiter.join(60)
        assert not waiter.is_alive()


def test_reading_is_no_save(tmp_path: Path) -> None:
    """Steps: read; then write. Verify: the waiter is woken by the second only, and once."""
    file = tmp_path / "driver.c"
    file.write_text("old")
    with Saves(tmp_path) as saves:
        woken = []
        waiter = threading.Thread(target=lambda: woken.append(saves.wait()))
        waiter.start()
        for _ in range(20):
            file.read_text()
        waiter.join(0.5)
        assert waiter.is_alive()
        file.write_text("new")
        waiter.join(60)
        assert len(woken) == 1
