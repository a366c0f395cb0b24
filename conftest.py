"""The fixtures that nicmodel brings, also in a checkout that is not installed."""

pytest_plugins = ["nicmodel.testing.plugin"]
