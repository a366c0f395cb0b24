"""An emulated gVNIC over vfio-user for unmodified guests."""

#: Semantic version: what CHANGELOG.md says of it is what a user may rely on.
__version__ = "0.2.0.dev0"

from nicmodel.moved import accept_old_names

accept_old_names()
