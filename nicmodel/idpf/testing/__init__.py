"""An idpf driver in Python, and a NIC in the hands of a test."""
