"""The core of any multi-queue NIC, with neutral names and numbers. It knows no personality."""
