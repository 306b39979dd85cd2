import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ipinsights.data.addresses import IPV6
from ipinsights.data.records import parse_csv
from ipinsights.errors import UserError
from ipinsights.logs import preparation, report
from ipinsights.logs.counting import Distinct
from ipinsights.logs.formats import FORMATS
from ipinsights.logs.options import Options
from ipinsights.logs.preparation import Prepared
from ipinsights.logs.rows import LogIn, Row, canonical, field
from ipinsights.logs.splitting import Split
from ipinsights.logs.text import Text
from logs.reading import write
from logs.test_access import line as access_line
from logs.test_sshd import accepted
from logs.test_sshd import line as sshd_line

START = int(datetime(2026, 1, 2, tzinfo=UTC).timestamp())


def run(out: Path, *names: Path | str, split: str = "none", **more: Any) -> Prepared:
    options = more.pop("options", Options())
    files = preparation.sources([str(name) for name in names], out)
    return preparation.prepare(files, out, options, Split.parse(split), **more)


def table(*rows: str) -> str:
    return "time,user,ip\n" + "".join(f"{row}\n" for row in rows)


@example(names=["\ufeffalice", 'a,"b"', " a "])
@given(names=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n")).filter(str.strip), min_size=1))
def test_what_is_written_is_what_training_reads(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    text = "".join(f"{field(name)},192.0.2.7\n" for name in names)
    assert parse_csv(text.encode()).entities.to_pylist() == names


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7:443", "192.0.2.7"),
        ("[2001:DB8::0:1]:443", "2001:db8::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "log-ins from the machine itself (127.0.0.1 or ::1)"),
        ("::ffff:127.0.0.1", "log-ins from the machine itself (127.0.0.1 or ::1)"),
        ("::1", "log-ins from the machine itself (127.0.0.1 or ::1)"),
        ("0.0.0.0", "rows with a placeholder for an address"),
        ("-", "rows with a placeholder for an address"),
        ("AWS Internal", "rows with a placeholder for an address"),
        ("", "rows with an empty address"),
        ("ec2.amazonaws.com", "rows with the name of an AWS service"),
        ("gate.example.org", "rows with a host name"),
        ("fe80::1%eth0", "rows with a zone id"),
        ("192.0.2.300", "not an IP address: Octet 300 (> 255) not permitted in '192.0.2.300'"),
        ("192.0.2.07", "not an IP address: Leading zeros are not permitted in '07' in '192.0.2.07'"),
    ],
)
def test_addresses_become_canonical(address: str, expected: str) -> None:
    found = canonical(address)
    assert (found if isinstance(found, str) else found.reason) == expected


@given(address=st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_a_canonical_address_is_read_by_training(address: Any) -> None:
    found = canonical(str(address))
    if isinstance(found, str):
        assert canonical(found) == found
        assert len(parse_csv(f"x,{found}\n".encode(), IPV6)) == 1
    else:
        assert address.is_loopback or address.is_unspecified or address.ipv4_mapped


def test_log_ins_stay_in_order_and_go_to_their_parts(tmp_path: Path) -> None:
    rows = [f"{START + day * 86400 + 5},user {day},192.0.2.{day}" for day in (0, 9, 3, 8, 7, 1, 10)]
    prepared = run(tmp_path / "out", write(tmp_path, table(*rows)), split="7d:1d:2d")
    texts = {part.path.parent.name: part.path.read_text() for part in prepared.parts}
    assert texts == {
        "train": "user 0,192.0.2.0,2026-01-02T00:00:05Z\nuser 3,192.0.2.3,2026-01-05T00:00:05Z\n"
        "user 1,192.0.2.1,2026-01-03T00:00:05Z\n",
        "validation": "user 7,192.0.2.7,2026-01-09T00:00:05Z\n",
        "latest": "user 9,192.0.2.9,2026-01-11T00:00:05Z\nuser 8,192.0.2.8,2026-01-10T00:00:05Z\n",
    }
    assert prepared.left_out == 1
    assert "1 log-in later than the split's durations: not written" in [*report.lines(prepared)]
    assert [(part.count, part.first) for part in prepared.parts] == [
        (3, "2026-01-02T00:00:05Z"),
        (1, "2026-01-09T00:00:05Z"),
        (2, "2026-01-10T00:00:05Z"),
    ]
    again = run(tmp_path / "again", *(part.path for part in prepared.parts), split="none")
    assert again.parts[0].path.read_text() == "".join(texts[part] for part in ("train", "validation", "latest"))


def test_log_ins_without_times_are_split_in_their_order(tmp_path: Path) -> None:
    text = "user,ip\n" + "".join(f"user {i},192.0.2.7\n" for i in range(20))
    prepared = run(tmp_path / "out", write(tmp_path, text), split="8:1:1")
    assert [part.count for part in prepared.parts] == [16, 2, 2]
    assert (tmp_path / "out/latest/log-ins.csv").read_text() == "user 18,192.0.2.7\nuser 19,192.0.2.7\n"
    with pytest.raises(UserError, match="no times, so they can be split by shares only"):
        run(tmp_path / "more", tmp_path / "some.log", split="7d:1d:2d")
    with pytest.raises(UserError, match=r"other\.log has times, and the files before have none"):
        run(tmp_path / "more", tmp_path / "some.log", write(tmp_path, table(f"{START},a,192.0.2.7"), name="other.log"))
    with pytest.raises(UserError, match=r"some\.log has no times, and the files before have some"):
        run(tmp_path / "more", tmp_path / "other.log", tmp_path / "some.log")


def test_a_folder_of_any_files(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    write(logs, sshd_line(accepted("a")), name="auth.log")
    write(logs, sshd_line(accepted("b"), "2026-01-03T03:04:05Z"), name="auth.log.1.gz")
    write(logs, sshd_line("Server listening on :: port 22."), name="deep/auth.log.2.gz")
    write(logs, "", name="empty.gz")
    write(logs, "\n", name="_SUCCESS")
    write(logs, sshd_line(accepted("c")) + sshd_line("Failed password for x from 192.0.2.9 port 4"), name="plain.gz")
    prepared = run(tmp_path / "out", logs)
    assert prepared.parts[0].path.read_text() == (
        "a,192.0.2.7,2026-01-02T03:04:05Z\nb,192.0.2.7,2026-01-03T03:04:05Z\nc,192.0.2.7,2026-01-02T03:04:05Z\n"
    )
    assert [
        (file.format.name if file.format else "", file.kept, file.dropped, file.other) for file in prepared.count.files
    ] == [
        ("sshd", 1, 0, 0),
        ("sshd", 1, 0, 0),
        ("sshd", 0, 0, 1),
        ("", 0, 0, 0),
        ("sshd", 1, 1, 0),
    ]
    lines = [*report.lines(prepared)]
    assert any(line.endswith("plain.gz: sshd, 1 log-in, 1 dropped") for line in lines)
    assert any(line.startswith("failed log-ins ") and line.endswith("plain.gz, line 2") for line in lines)
    assert any(
        "3 log-ins of 3 entities from 1 address (1 IPv4, 0 IPv6), 2026-01-02T03:04:05Z to" in line for line in lines
    )
    notes = " ".join(report.notes(prepared))
    assert "name no year. The last log-in was taken to be of 2026" in notes
    assert "taken to be in UTC" in notes


def test_what_was_written_is_no_input_and_is_not_replaced_by_chance(tmp_path: Path) -> None:
    write(tmp_path, sshd_line(accepted()))
    out = tmp_path / "out"
    run(out, tmp_path)
    with pytest.raises(UserError, match=r"out/log-ins\.csv exists\. Name another folder, or replace it with --force"):
        run(out, tmp_path, split="8:1:1")
    (out / "other").write_text("not ours")
    prepared = run(out, tmp_path, split="8:1:1", force=True)
    assert prepared.count.kept == 1
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "other",
        "train/log-ins.csv",
    ]


def test_what_was_written_stays_if_the_new_logs_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, write(tmp_path, sshd_line(accepted())))
    with pytest.raises(UserError, match="no format that is known"):
        run(out, write(tmp_path, "something else"), force=True)
    assert (out / "log-ins.csv").exists()


def test_several_formats_need_names_that_tell_them_apart(tmp_path: Path) -> None:
    sshd = write(tmp_path, sshd_line(accepted()), name="auth.log")
    access = write(tmp_path, access_line(), name="access.log")
    with pytest.raises(UserError, match=r"auth\.log is a log of sshd and .*access\.log one of access.*--entity-pre"):
        run(tmp_path / "out", sshd, access)
    prepared = run(tmp_path / "out", sshd, access, prefixed=True)
    assert [line.partition(",")[0] for line in prepared.parts[0].path.read_text().splitlines()] == [
        "sshd:alice",
        "access:alice",
    ]


@pytest.mark.parametrize("prefixed", [False, True])
def test_nobody_is_no_entity(tmp_path: Path, prefixed: bool) -> None:
    path = write(tmp_path, table(f"{START},a,192.0.2.7", f"{START},,192.0.2.7", f"{START},  ,192.0.2.7"))
    prepared = run(tmp_path / "out", path, prefixed=prefixed)
    assert [(dropped.reason, reason.count) for dropped, reason in prepared.count.dropped.items()] == [
        ("rows without an entity", 2)
    ]


def test_a_file_of_no_known_format(tmp_path: Path) -> None:
    path = write(tmp_path, "Dear \x1b[31mdiary,\n")
    with pytest.raises(UserError, match=r"some\.log has no format .* begins with 'Dear \\x1b\[31mdiary,'") as error:
        run(tmp_path / "out", path)
    assert all(f"{name}: {format_.about}" in str(error.value) for name, format_ in FORMATS.items())
    with pytest.raises(UserError, match="looks like bzip2: unpack or convert it"):
        run(tmp_path / "out", write(tmp_path, b"BZh91AY"))


def test_malformed_rows_are_counted_and_most_must_not_be(tmp_path: Path) -> None:
    rows = [f"{START},a,192.0.2.7", f"{START},b,192.0.2.300", "when,c,192.0.2.7", "when,d\x1b[2J,192.0.2.7"]
    prepared = run(tmp_path / "out", write(tmp_path, table(rows[0], rows[0], *rows)))
    assert prepared.count.kept == 3
    assert prepared.count.files[0].malformed == 3
    lines = [*report.lines(prepared)]
    shown = "line 6: not a time in ISO 8601: 'when', in ['when', 'c', '192.0.2.7']"
    assert any(line.startswith("not a time in ISO 8601 ") and line.endswith(shown) for line in lines)
    assert "\x1b" not in "".join(lines)
    first = r"3 of 4 rows are malformed\. The first is line 3: not an IP address: .* It was read as columns"
    with pytest.raises(UserError, match=rf"some\.log: {first}"):
        run(tmp_path / "more", write(tmp_path, table(*rows)))


def test_an_option_that_would_choose_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, table(f"{START},a,192.0.2.7"))
    with pytest.raises(UserError, match=r"--status is for access \(.*\), and the logs are of columns"):
        run(tmp_path / "out", path, options=Options(status=frozenset({"200"})))
    assert not [*(tmp_path / "out").iterdir()]


def test_no_log_in_is_explained(tmp_path: Path) -> None:
    prepared = run(tmp_path / "out", write(tmp_path, access_line("-") * 3 + access_line(status=500)))
    assert not prepared.parts
    assert not [*(tmp_path / "out").iterdir()]
    assert report.why_none(prepared).startswith(
        "no log-in was kept: 3 requests without a user. An access log names users"
    )


def test_what_a_person_should_know(tmp_path: Path) -> None:
    def notes(text: str, **more: Any) -> str:
        return " ".join(report.notes(run(tmp_path / "out", write(tmp_path, text), force=True, **more)))

    few = notes(table(f"{START},a,192.0.2.7", f"{START + 3600},a,2001:db8::1"))
    assert "cover 1.0 hours" in few
    assert "one entity" in few
    assert "2 addresses: too few" in few
    assert "ip_version=6" in few
    many = "".join(f"user {i},192.0.2.{i % 200}\n" for i in range(300))
    assert notes(many) == "The log-ins have no times, so they are split in their order."
    assert "latest got no log-in" in notes(table(f"{START},a,192.0.2.7"), split="8:1:1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]


@given(numbers=st.lists(st.integers(0, 300)))
def test_distinct_texts_are_counted(numbers: list[int]) -> None:
    distinct = Distinct()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distinct, "_ROOM", 5)
        for number in numbers:
            distinct.add(str(number))
        assert len(distinct) == len(set(numbers))


def test_what_a_person_should_know_of_a_format(tmp_path: Path) -> None:
    pictures = run(tmp_path / "pictures", write(tmp_path, access_line() + access_line("-") * 2))
    found = [*report.notes(pictures)]
    assert any("Each request of a user counts as a log-in. --resource" in note for note in found)
    assert any("Most rows are requests without a user. An access log names users only where" in note for note in found)
    silent = write(tmp_path, sshd_line("Server listening on :: port 22."), name="auth.log")
    both = run(tmp_path / "both", tmp_path / "some.log", silent, prefixed=True, options=Options(resource=".*"))
    found = [*report.notes(both)]
    assert "No log-in was kept of the logs of format sshd." in found
    assert not any("--resource" in note for note in found)


def test_of_many_files_the_first_are_listed(tmp_path: Path) -> None:
    for number in range(50):
        write(tmp_path / "logs", access_line(), name=f"{number:03}.log")
    lines = [*report.lines(run(tmp_path / "out", tmp_path / "logs"))]
    assert sum(".log: access, 1 log-in" in line for line in lines) == 40
    assert "10 more files: 10 log-ins" in lines


class Counted:
    """A long log that does not exist."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __call__(self, text: Text, options: Options) -> Iterator[Row]:
        for number in range(self.rows):
            entity, address = f"user {number % 50}", f"192.0.2.{number % 40}"
            yield (number, "", LogIn(entity, address, START + number // 500))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Rows are taken one by one: of more rows, no more is held."""

    def peak(rows: int) -> int:
        format_ = replace(FORMATS["sshd"], rows=Counted(rows))
        path = write(tmp_path, "x")
        tracemalloc.start()
        prepared = run(tmp_path / str(rows), path, split="8:1:1", format_=format_)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert prepared.count.kept == rows
        return most

    peak(1_000)  # what is imported and cached meanwhile
    few, many = peak(5_000), peak(80_000)
    assert many < few + 500_000  # 75,000 log-ins in lines take 3 MB
