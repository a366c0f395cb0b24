"""The commands of ``nicmodel experiment``, as far as nothing is measured."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from nicmodel.cli.experiment import experiment


@pytest.mark.parametrize("name", sorted(experiment.commands))
def test_another_kind_of_nic_is_told_why_it_cannot(name: str) -> None:
    run = CliRunner().invoke(experiment, [name, "--device", "idpf"])
    assert run.exit_code == 2
    assert "Invalid value for '--device': idpf has " in run.output or "idpf can take none" in run.output
