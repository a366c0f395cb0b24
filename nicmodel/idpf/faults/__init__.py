"""Faults on demand that only an idpf has, and where those sit that are about its rings and its mailbox."""
