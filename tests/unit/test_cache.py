"""The user's cache folder."""

import os
from pathlib import Path

import pytest

from nicmodel.cache import by_last_use


def test_folders_by_their_last_use(tmp_path: Path) -> None:
    for second, name in enumerate(("oldest", "middle", "newest")):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (second, second))
    (tmp_path / "a file").touch()
    assert [path.name for path in by_last_use(tmp_path)] == ["newest", "middle", "oldest"]


def test_another_process_deletes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """*Steps*: a folder goes between the listing and the look at it. *Verify*: the others are there."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    listing = Path.iterdir

    def then_deleted(folder: Path) -> list[Path]:
        found = list(listing(folder))
        (tmp_path / "one").rmdir()
        return found

    monkeypatch.setattr(Path, "iterdir", then_deleted)
    assert [path.name for path in by_last_use(tmp_path)] == ["two"]
