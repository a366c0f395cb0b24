"""Fields of a profile: what they may be, and what sets them."""

from __future__ import annotations

import pytest

from nicmodel.cli.serve import serve
from nicmodel.gvnic.profile import SETTINGS, Profile
from nicmodel.nic.setting import Range

RANGES = {name: setting.range for name, setting in SETTINGS.items() if setting.range is not None}


@pytest.mark.parametrize(("name", "numbers"), RANGES.items(), ids=list(RANGES))
def test_the_ends_of_a_range(name: str, numbers: Range) -> None:
    """Verify: both ends are possible, and 0 where it takes something away; what is beyond is refused by its number."""
    Profile(**{name: numbers.low})  # type: ignore[arg-type]
    Profile(**{name: numbers.high})  # type: ignore[arg-type]
    for value in (numbers.low - 1, numbers.high + 1):
        if numbers.or_none and value == 0:
            continue
        with pytest.raises(ValueError, match=f"{value}.*{numbers.low}.*({numbers.high}|{numbers.high:,})"):
            Profile(**{name: value})  # type: ignore[arg-type]
    if numbers.or_none:
        Profile(**{name: 0})  # type: ignore[arg-type]


def test_settings_are_options_of_serve() -> None:
    """Verify: each is one; what it needs is one, too."""
    given = {parameter.name for parameter in serve.params}
    assert set(SETTINGS) - {"mac"} <= given and "macs" in given
    assert {setting.needs for setting in SETTINGS.values()} <= {"", *SETTINGS}
