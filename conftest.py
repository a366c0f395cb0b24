"""What every test has: the fixtures that nicmodel brings, also in a checkout that is not installed."""

from hypothesis import settings

pytest_plugins = ["nicmodel.testing.plugin"]

# An example that takes long on a busy machine is no fault.
settings.register_profile("nicmodel", deadline=None)
settings.load_profile("nicmodel")
