"""Who talks to a running server, and what they make of its answers. Nothing here has a NIC in its hands."""
