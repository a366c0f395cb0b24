"""What holds for all options of this model: their part of the contract is in the documentation, and nowhere else."""

from __future__ import annotations

from nicmodel.observe.findings import Rule

#: Areas by the first part of a rule's name.
AREAS = {"OPT": "options of this model"}

RULES = (
    Rule(
        "OPT-001",
        "Commands of this model's options come when the device is configured, with a queue format of DQO.",
        "The device refuses them: there are no queues that could have an option.",
        "docs/options.md",
    ),
    Rule(
        "OPT-002",
        "The queue that a command of an option is for exists.",
        "The device refuses the command; the driver has lost track of its queues.",
        "docs/options.md",
    ),
)
