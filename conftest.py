"""What every test has: the fixtures that nicmodel brings, also in a checkout that is not installed."""

import subprocess
import sys

import pytest
from hypothesis import settings

from nicmodel.testing.plugin import announce_compiling
from nicmodel.vm.resources import available_memory, processors

pytest_plugins = ["nicmodel.testing.plugin"]

# An example that takes long on a busy machine is no fault.
settings.register_profile("nicmodel", deadline=None)
settings.load_profile("nicmodel")

#: Starts a NIC, which compiles the packet path, and says so.
_COMPILE = """
from nicmodel.observe.compiling import announce
from nicmodel.gvnic.testing.loopback import Loopback
announce()
Loopback().close()
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`."""
    parser.addoption("--long", action="store_true", help="also run the tests marked as long")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three processes of tests for two processors: a test with a guest waits for a third of its time.

    There is one at least, and no more than one for each 3 GiB of free memory: each may have three guests of 1 GiB.
    """
    return max(1, min((3 * processors() + 1) // 2, available_memory() // (3 << 30)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long tests, unless they are asked for; several processes begin with what takes longest, guests.

    So short tests are what is left when the last processes end, and none of them waits long for another.
    """
    if not config.getoption("--long"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("guest") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile before the first test, whose time is limited, and before there are several processes of tests."""
    parallel = hasattr(session.config, "workerinput")
    if not parallel and not session.config.option.collectonly:
        subprocess.run([sys.executable, "-c", _COMPILE], check=True)
    # Tests of this project use compiled code without a fixture, too.
    announce_compiling(session.config)
