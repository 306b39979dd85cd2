"""What a page consists of, and how numbers are written on it."""

import datetime
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NARROW = "\u202f"
"""The space between a number and its unit, which never breaks a line."""
NONE = "\u2013"
"""What stands where there is no number."""


@dataclass(frozen=True)
class Table:
    """Cells of text. Columns of numbers are aligned at their right."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    texts: int = 1
    """So many first columns are words; the first of them is the header of its row."""
    wide: bool = False
    """Whether the last column is a sentence."""


@dataclass(frozen=True)
class Plot:
    """A figure, and the same in words."""

    name: str
    """Its id in the page."""
    title: str
    says: str
    """What to see, in a sentence."""
    figure: dict[str, Any]
    """The data and the layout, as plotly.js takes them."""
    table: Table | None = None
    """The figures of the plot."""


@dataclass(frozen=True)
class Slider:
    """The thresholds that a person may choose among, and what each means."""

    chosen: int
    """The place of the threshold that is shown first."""
    steps: list[dict[str, Any]]
    """For each: the ``threshold``; what the ``overall`` numbers say; and a row of cells for each kind of attacks."""
    head: list[str]
    plot: Plot


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    name: str
    title: str
    lead: list[str]
    """Paragraphs."""
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    columns: bool = False
    """Whether plots stand side by side where there is room."""
    slider: Slider | None = None
    points: list[str] = field(default_factory=list)
    """A list of sentences."""


@dataclass(frozen=True)
class Figure:
    """One of the numbers at the top of a page."""

    value: str
    label: str


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    subtitle: str
    headline: list[Figure]
    sections: list[Section]
    footer: str


def percent(share: float | None) -> str:
    """A share in per cent, with as many digits as it takes to be told from none and from all."""
    if share is None or not math.isfinite(share):
        return NONE
    value = 100 * share
    distance = min(abs(value), abs(100 - value))
    digits = 0 if distance == 0 else 1 if distance >= 1 else 2 if distance >= 0.1 else 3
    return f"{value:.{digits}f}{NARROW}%"


def rate(share: float) -> str:
    """A round share, such as one that was asked for, in per cent."""
    return f"{100 * share:g}{NARROW}%"


def number(value: float | None, digits: int = 2) -> str:
    """A number with thousands apart, and a true minus."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:,.{digits}f}".replace("-", "\u2212")


def count(value: int) -> str:
    """A whole number with thousands apart."""
    return number(value, 0)


def minute(time: np.datetime64 | datetime.datetime) -> str:
    """A moment to the minute."""
    return str(np.datetime64(time).astype("datetime64[m]")).replace("T", " ")


def counted(value: int, noun: str, plural: str | None = None) -> str:
    """A whole number of things."""
    return f"{count(value)} {noun if value == 1 else plural or noun + 's'}"
