"""What has become of a campaign's cells, in an SQLite database: one table, to be asked whatever one likes.

sqlite3 campaign.sqlite "SELECT json_extract(axes, '$.kernel'), status, count(*) FROM cells GROUP BY 1, 2"
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from nicmodel.vm.campaign.cell import Outcome
from nicmodel.vm.campaign.plan import Cell
from nicmodel.vm.errors import VmError

#: Of the table's form.
_VERSION = 1
_TABLE = """
CREATE TABLE cells (
    key TEXT PRIMARY KEY,       -- what tells a cell from all others
    axes TEXT NOT NULL,         -- its values by axis, JSON
    command TEXT NOT NULL,      -- its words, JSON
    status TEXT NOT NULL,       -- good, broken, failed, hung, lost
    code INTEGER,               -- exit status
    seconds REAL NOT NULL,      -- how long it took
    cpu REAL NOT NULL,          -- seconds of processors that were used for it
    worker TEXT NOT NULL,       -- host and process
    finished TEXT NOT NULL,     -- UTC
    output TEXT NOT NULL,       -- the last of what it printed
    result TEXT NOT NULL        -- what it wrote to {result}
) STRICT
"""

#: What has a verdict, and need not be run again.
SETTLED = ("good", "broken")


class Store:
    """The database, open for one campaign at a time.

    Args:
        path: Its file; made if it is not there.

    Raises:
        VmError: It cannot be used: it is no such database, or another campaign uses it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._database = sqlite3.connect(path, timeout=2, isolation_level=None)
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("BEGIN EXCLUSIVE")  # held until the end: locking_mode
            [version] = self._database.execute("PRAGMA user_version").fetchone()
            empty = not self._database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if empty:
                self._database.execute(_TABLE)
                self._database.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise VmError(f"{path} is no database of a campaign of this version: name another by --results")
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            what = "another campaign uses it" if "locked" in str(error) else str(error)
            raise VmError(f"{path} cannot be used: {what}") from None
        except sqlite3.DatabaseError as error:
            raise VmError(f"{path} is no database of a campaign ({error}): name another by --results") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, cell: Cell, outcome: Outcome) -> None:
        """Keep what has become of a cell, in place of what is known of it.

        Raises:
            VmError: It cannot be kept, as on a full disk.
        """
        row = (
            cell.key, json.dumps(dict(cell.values)), json.dumps(cell.words), outcome.status, outcome.code,
            outcome.seconds, outcome.cpu, outcome.worker, datetime.now(UTC).isoformat(timespec="seconds"),
            outcome.output, outcome.result,
        )  # fmt: skip
        try:
            self._database.execute(f"INSERT OR REPLACE INTO cells VALUES ({', '.join('?' * len(row))})", row)
        except sqlite3.Error as error:
            raise VmError(f"{self._path}: {error}") from None

    def outcomes(self, keys: Collection[str]) -> dict[str, Outcome]:
        """What is known of cells, by key; without their results, which may be large.

        Raises:
            VmError: The database is damaged.
        """
        columns = "key, status, code, seconds, cpu, worker, output"
        try:
            rows = self._database.execute(f"SELECT {columns} FROM cells").fetchall()
        except sqlite3.Error as error:
            raise VmError(f"{self._path}: {error}") from None
        return {key: Outcome(*rest) for key, *rest in rows if key in keys}
