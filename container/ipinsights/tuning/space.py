"""What is searched: the hyperparameters to tune, and from which range each is drawn."""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ipinsights.errors import UserError, brief
from ipinsights.hyperparameters import Declaration, declarations

FOLLOWS_DATA = "num_entity_vectors"
"""It has a tuning range, but no better value than one that gives every entity a row."""


@dataclass(frozen=True)
class Range:
    """The values of one hyperparameter that are tried, both ends included."""

    name: str
    low: float
    """A whole number where the hyperparameter is one."""
    high: float
    whole: bool
    logarithmic: bool

    def nearest(self, value: float) -> float:
        """The value in the range that is nearest."""
        return min(max(value, self.low), self.high)


def ranges(asked: Sequence[str], fixed: Collection[str]) -> list[Range]:
    """The ranges to draw from: those asked for as NAME or NAME=LOW:HIGH; without any, all that are declared.

    Those that are ``fixed`` are not tuned. Raises UserError if something asked for cannot be.
    """
    known = {declaration.name: declaration for declaration in declarations() if declaration.tuning}
    if not asked:
        asked = [name for name in known if name not in fixed and name != FOLLOWS_DATA]
    found: dict[str, Range] = {}
    for text in asked:
        name, _, bounds = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f": those that can be are {', '.join(known)}"
            raise UserError(f"--tune {brief(text)}: {brief(name)} cannot be tuned{hint}")
        if name == FOLLOWS_DATA:
            raise UserError(
                f"--tune {brief(text)}: {name} is not tuned, because no value is better than twice the number of "
                "entities, which it is"
            )
        if name in fixed:
            raise UserError(f"{name} is set by an option and asked to be tuned: leave one of them out")
        if name in found:
            raise UserError(f"--tune names {name} twice")
        found[name] = _range(known[name], bounds, text)
    if not found:
        raise UserError("every hyperparameter that can be tuned is set by an option: leave one out")
    return list(found.values())


def _range(declaration: Declaration, bounds: str, text: str) -> Range:
    low, high = declaration.tuning or (0, 0)
    if bounds:
        ends = bounds.split(":")
        if len(ends) != 2:
            raise UserError(f"--tune {brief(text)}: a range is two numbers with a colon between them, as in =8:256")
        try:
            low, high = (float(declaration.parse(end)) for end in ends)
        except ValueError as error:
            raise UserError(f"--tune {brief(text)}: {error}") from None
        if low > high:
            raise UserError(f"--tune {brief(text)}: the range ends before it begins")
    whole = declaration.type is int
    if whole:
        low, high = int(low), int(high)
    return Range(declaration.name, low, high, whole, declaration.logarithmic and low > 0)
