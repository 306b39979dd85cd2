import math

import pytest

from ipinsights.reporting.parts import counted, number, percent, rate


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0, "0"),
        (1.0, "100"),
        (0.5, "50.0"),
        (0.0325, "3.2"),
        (0.9986, "99.86"),
        (0.99997, "99.997"),
        (0.00004, "0.004"),
        (0.0015, "0.15"),
    ],
)
def test_a_share_has_the_digits_that_tell_it_from_none_and_all(share: float, shown: str) -> None:
    assert percent(share) == f"{shown}\u202f%"


def test_numbers_are_written_for_people() -> None:
    assert number(-1234.5) == "\u22121,234.50"
    assert number(None) == number(math.nan) == percent(None) == percent(math.inf) == "\u2013"
    assert counted(1, "account") == "1 account"
    assert counted(1200, "account") == "1,200 accounts"
    assert counted(0, "entity", "entities") == "0 entities"
    assert rate(0.0001) == "0.01\u202f%"
