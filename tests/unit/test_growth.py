"""What is said of curves that are known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from growth import FIGURES, FLAT, LINEAR, Samples, exponents, last_exponent, row_of, verdict

SIZES = (1, 4, 16, 64, 256)


def samples(cost: Callable[[int], float]) -> Samples:
    """Three repetitions, of which one is slower throughout: that is no growth."""
    return {size: [cost(size), cost(size), 1.5 * cost(size)] for size in SIZES}


@pytest.mark.parametrize(
    ("cost", "exponent", "said"),
    [
        (lambda size: 7.0, 0.0, FLAT),
        (lambda size: 7.0 * size, 1.0, LINEAR),
        (lambda size: 7.0 * size**2, 2.0, "worse"),
        (lambda size: 7.0 / size, -1.0, FLAT),
        (lambda size: 7.0 * size**0.5, 0.5, LINEAR),
    ],
    ids=["flat", "linear", "square", "falling", "root"],
)
def test_an_exponent_is_found(cost: Callable[[int], float], exponent: float, said: str) -> None:
    found = exponents(samples(cost))
    assert found == pytest.approx([exponent] * 3)
    assert last_exponent(samples(cost)) == pytest.approx(exponent)
    assert verdict(found[0]) == said


def test_what_begins_late_is_not_hidden_by_what_was_before() -> None:
    """The line through all points is flatter than the end of the curve, which decides."""
    late = samples(lambda size: 1000 + size**2)
    assert max(exponents(late)) < 1 < last_exponent(late)
    row = row_of("memory", late)
    assert (row["goal"], row["verdict"], row["held"]) == (LINEAR, "worse", "no")


def test_a_row() -> None:
    row = row_of("map", {1: [1.0, 2.0], 10: [1.0, 2.1]})
    assert (row["what"], row["sizes"], row["goal"], row["held"]) == ("DMA_MAP", "1 to 10 maps", FLAT, "yes")
    assert (row["first"], row["last"], row["repetitions"]) == (1.5, pytest.approx(1.55), 2)
    assert row["runs"] == [1.0, 2.1] and row["points"] == [[1, 1.5], [10, pytest.approx(1.55)]]
    assert row["spread"] == pytest.approx(0.0106, abs=1e-3)


def test_figures_can_be_told_apart() -> None:
    assert len({figure.what for figure in FIGURES.values()}) == len(FIGURES)
