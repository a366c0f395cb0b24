"""What every test has: the fixtures that nicmodel brings, also in a checkout that is not installed."""

import pytest
from hypothesis import settings

from nicmodel.testing.plugin import announce_compiling

pytest_plugins = ["nicmodel.testing.plugin"]

# An example that takes long on a busy machine is no fault.
settings.register_profile("nicmodel", deadline=None)
settings.load_profile("nicmodel")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Tests of this project use compiled code without a fixture, too."""
    announce_compiling(session.config)
