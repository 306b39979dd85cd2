import gzip
from pathlib import Path

import numpy as np
import pytest

from ipinsights.errors import UserError
from ipinsights.evaluation import simulation
from ipinsights.evaluation.simulation import Ranges


@pytest.fixture(scope="module")
def ranges() -> Ranges:
    return Ranges.synthetic(np.random.default_rng(0))


def test_a_synthetic_table_is_disjoint_and_ascending(ranges: Ranges) -> None:
    assert 100_000 < len(ranges) < 400_000  # of the order of the real table's 230,984
    assert (ranges.first <= ranges.last).all()
    assert (ranges.last[:-1] < ranges.first[1:]).all()
    assert ranges.first[0] >= 1 << 24
    assert ranges.last[-1] < 224 << 24
    assert 0.3 < (ranges.last.astype(np.int64) - ranges.first + 1).sum() / 2**32 < 0.8


def test_a_table_is_read_plain_and_compressed(tmp_path: Path) -> None:
    text = "16777216\t16777471\t15169\tAU\tGOOGLE # 1\n16778240\t16779007\t56203\tAU\t\n"
    (tmp_path / "t.tsv").write_text(text)
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("t.tsv", "t.tsv.gz"):
        ranges = Ranges.read(tmp_path / name)
        assert ranges.first.tolist() == [16777216, 16778240]
        assert ranges.last.tolist() == [16777471, 16779007]


@pytest.mark.parametrize("text", ["", "a\tb\n", "1\n", "5\t3\n"])
def test_what_is_no_table_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(UserError, match=r"t\.tsv: not a table of address ranges"):
        Ranges.read(tmp_path / "t.tsv")


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a table of address ranges"):
        Ranges.read(tmp_path / "none.tsv")


def test_traffic_has_the_tutorials_shape(ranges: Ranges) -> None:
    traffic = simulation.simulate(2000, ranges, np.random.default_rng(1))
    assert (np.diff(traffic.day) >= 0).all()
    assert traffic.day[0] >= 0
    assert traffic.day[-1] < simulation.DAYS
    counts = np.bincount(traffic.user, minlength=2000)
    assert counts.min() == 50
    assert counts.max() == 10_000
    assert 80 < np.median(counts) < 120  # 50 (1 + Pareto(1)) has median 100
    # Home, work and their neighbourhoods take all but the 1 / 31 of log-ins from elsewhere.
    row = np.searchsorted(ranges.first, traffic.address, side="right") - 1
    assert (traffic.address <= ranges.last[row]).all()
    user = int(np.argmax(counts))
    rows = row[traffic.user == user]
    frequent = np.bincount(rows // 200)
    assert np.sort(frequent)[-4:].sum() > 0.6 * counts[user]


def test_attacks_meet_known_users_from_anywhere(ranges: Ranges) -> None:
    rng = np.random.default_rng(2)
    traffic = simulation.simulate(300, ranges, rng)
    train, test = traffic.where(traffic.day < 7), traffic.where(traffic.day >= 7)
    case = simulation.make_test_case(train, test, ranges, 5000, rng)
    normal, attacks = case.normal, case.attacks
    assert len(normal.user) == len(attacks.user) == 5000
    assert set(normal.user) <= set(train.user)
    assert set(attacks.user) <= set(train.user)
    assert (normal.day >= 7).all()
    assert len(case.validation.user) == 5000
    assert (case.validation.day >= 7).all()
    moments = {*zip(normal.user.tolist(), normal.day.tolist(), normal.address.tolist(), strict=True)}
    spare = case.validation
    again = zip(spare.user.tolist(), spare.day.tolist(), spare.address.tolist(), strict=True)
    assert not moments.intersection(again)
    seen = set(zip(traffic.user.tolist(), (traffic.address >> 8).tolist(), strict=True))
    assert sum((u, a >> 8) in seen for u, a in zip(attacks.user.tolist(), attacks.address.tolist(), strict=True)) < 50


def test_the_seed_decides(ranges: Ranges) -> None:
    one, same, other = (simulation.simulate(50, ranges, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert (one.address == same.address).all()
    assert len(one.user) != len(other.user) or (one.address != other.address).any()
