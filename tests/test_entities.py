import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ipinsights import entities


def test_rows_never_change_between_releases() -> None:
    names = pa.array(["user_1", "00123", "NA", "Zoë", "", "用户"])
    assert entities.rows(names, 20_000).tolist() == GOLDEN


GOLDEN = [
    12482,
    787,
    11745,
    9521,
    16921,
    18282,
]  # xxh64("") is 0xef46db3751d8e999 in the specification: 16921 modulo 20000


@given(st.lists(st.text()), st.integers(1, 250_000_000))
def test_a_row_depends_on_the_name_alone(names: list[str], size: int) -> None:
    rows = entities.rows(pa.array(names, pa.string()), size).tolist()
    assert all(0 <= row < size for row in rows)
    assert rows == [entities.rows(pa.array([name]), size)[0] for name in names]


def test_rows_spread_evenly() -> None:
    size = 20_000
    occupied = len(set(entities.rows(pa.array([f"user_{i}" for i in range(10_000)]), size).tolist()))
    expected = size * (1 - (1 - 1 / size) ** 10_000)
    assert abs(occupied - expected) < 150
