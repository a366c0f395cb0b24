"""Commands that only talk to a server start without the compiler, which takes longer to load than all else."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "command", ["stat", "show", "bringup", "ledger", "inject", "send", "link", "reset", "trace", "capture"]
)
def test_without_the_compiler(command: str) -> None:
    script = (
        "import sys\n"
        f"sys.argv = ['nicmodel', '{command}', '--help']\n"
        "from nicmodel.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(*{'numba', 'numpy'} & sys.modules.keys(), file=sys.stderr)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert f"Usage: nicmodel {command}" in run.stdout
    loaded = run.stderr.split()
    assert "numba" not in loaded
    if command in ("stat", "show", "bringup", "ledger", "trace"):
        assert not loaded
