"""PCI configuration space: header, BARs and capabilities."""
