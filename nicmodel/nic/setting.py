"""How the fields of a profile are set: which numbers they may be, and what ``nicmodel serve`` says of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: Where a field's metadata have its `Setting`.
SETTING = "setting"
#: Of frames and payload, microseconds: a minute.
MAX_WAIT_USECS = 60_000_000


@dataclass(frozen=True)
class Range:
    """The numbers that a field may be.

    Attributes:
        low: the least.
        high: the most.
        refusal: what is said of another, with ``{value}``, ``{low}`` and ``{high}``.
        or_none: 0 is possible, too: it takes away what the field is about, or leaves it to others.
    """

    low: int
    high: int
    refusal: str
    or_none: bool = False

    def check(self, value: int) -> None:
        """See that a number is one of them.

        Raises:
            ValueError: it is not; the text says which are.
        """
        if not self.low <= value <= self.high and not (self.or_none and value == 0):
            raise ValueError(self.refusal.format(value=value, low=self.low, high=self.high))


class Section(StrEnum):
    """Headings in the help of ``nicmodel serve``."""

    NIC = "The NIC"
    SPEED = "Speed"
    OWN = "Features that no stock driver uses"


@dataclass(frozen=True)
class Setting:
    """How ``nicmodel serve`` sets a field of `Profile`.

    Attributes:
        section: where in its help.
        meaning: what the help says.
        metavar: what stands for the value there; empty: the numbers that it may be.
        option: the option's name; empty: the field's.
        range: the numbers that the field may be; None: it is no number, or depends on others.
        default: the default in the help's words; empty: as it is.
        needs: a field that has to be on for this one to say anything; empty: none.
    """

    section: Section
    meaning: str
    metavar: str = ""
    option: str = ""
    range: Range | None = None
    default: str = ""
    needs: str = ""
