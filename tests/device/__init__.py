"""The device through a driver in Python, over its real socket."""
