"""The command ``nicmodel``."""

from nicmodel.cli.main import main

__all__ = ["main"]
