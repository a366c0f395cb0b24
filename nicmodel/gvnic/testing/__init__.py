"""gVNIC in the hands of a test: its driver in Python, and drivers that break its contract."""
