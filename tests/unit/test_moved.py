"""Modules are still found by the names that they had in 0.1."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from nicmodel.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_module_of_the_new_one(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is {MOVED[old]} now"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(MOVED[old])
    assert found.__name__ == MOVED[old]


def test_a_script_of_0_1() -> None:
    script = (
        "from nicmodel.testing.driver import Driver\n"
        "from nicmodel.testing.nic import TestNic\n"
        "from nicmodel.gvnic.profile import Profile\n"
        "with TestNic(Profile()) as nic, nic.connect() as driver:\n"
        "    assert isinstance(driver, Driver)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
