"""An emulated gVNIC over vfio-user for unmodified guests."""
