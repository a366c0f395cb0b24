"""A gVNIC driver in Python for tests without a guest."""
