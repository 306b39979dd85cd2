"""``ipinsights prepare``: read logs, and write their log-ins."""

import argparse
import sys
import textwrap
from datetime import UTC
from pathlib import Path
from zoneinfo import ZoneInfo

from tqdm import tqdm

from ipinsights.commands.options import Commands
from ipinsights.data.sources import size
from ipinsights.errors import UserError, brief, one_line
from ipinsights.logs import report
from ipinsights.logs.formats import FORMATS
from ipinsights.logs.options import Options
from ipinsights.logs.preparation import prepare, sources
from ipinsights.logs.splitting import Split
from ipinsights.logs.times import Clock


def add(commands: Commands) -> None:
    """Add the command."""
    known = "; ".join(f"{name}: {format_.about}" for name, format_ in FORMATS.items())
    command = commands.add_parser(
        "prepare",
        help="read logs, and write their log-ins: the first step from your own data to a model",
        description=textwrap.fill(
            "Read logs and write the log-ins in them as CSV: entity, address, time in UTC. The command finds "
            "the format of each file by its content, drops what is no log-in and says why. It writes "
            "OUT/train/log-ins.csv, OUT/validation/log-ins.csv and OUT/latest/log-ins.csv, split by time: the folders "
            "train and validation are channels of `train`, and the latest log-ins are those to look at. "
            f"The formats are {known}."
        ),
        epilog="The first step from your own logs to a model:\n"
        "  ipinsights prepare auth.log* --out log-ins\n"
        '  ipinsights prepare access.log.gz --resource "GET /login_success" --status 200 --out log-ins\n'
        "  ipinsights prepare cloudtrail/ --split rest:1d:1d --out log-ins\n"
        "  ipinsights prepare log-ins.csv --entity account --address client_ip --out log-ins",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("log", nargs="+", help="a file, plain or gzip, or a folder of files, or - for standard input")
    command.add_argument("--out", type=Path, required=True, help="the folder to write to")
    command.add_argument("--force", action="store_true", help="replace what this command wrote to OUT before")
    command.add_argument("--format", choices=FORMATS, help="the format of all files, if it cannot be found")
    command.add_argument(
        "--split",
        default="8:1:1",
        help="how much goes to train, validation and latest: shares of the log-ins (default 8:1:1); durations from the "
        "first log-in, such as 7d:1d:2d; durations until the last, such as rest:1d:1d (d: calendar days in UTC, h: "
        "hours); or none, which writes OUT/log-ins.csv",
    )
    command.add_argument(
        "--entity-prefix", action="store_true", help="begin each entity with its format, as in sshd:alice"
    )
    times = command.add_argument_group("times")
    times.add_argument("--time-zone", default="UTC", metavar="NAME", help="of times without one (default UTC)")
    times.add_argument(
        "--year",
        type=int,
        help="the year of the first line of a syslog that names none. Without it each line is of the latest year in "
        "which it is not younger than its file's last change",
    )
    times.add_argument(
        "--time-format",
        metavar="FORMAT",
        help="the form of times in a table, as Python's strptime reads it, such as '%%d.%%m.%%Y %%H:%%M:%%S'. ISO 8601 "
        "and seconds or milliseconds since 1970 are recognised",
    )
    access = command.add_argument_group("access logs")
    access.add_argument(
        "--resource",
        metavar="TEXT",
        help="keep requests for this path, or method and path, such as 'GET /login_success'. It may be a regular "
        "expression. Without it each request of a user is a log-in",
    )
    access.add_argument("--status", help="keep these statuses, such as 200,302. Without it: all below 400")
    access.add_argument(
        "--forwarded",
        action="store_true",
        help="take the left-most public address of the last quoted field, X-Forwarded-For. Clients can forge it",
    )
    command.add_argument(
        "--cloudtrail",
        choices=("console", "all"),
        default="console",
        help="log-ins to the console only (the default), or all API calls of users and roles",
    )
    tables = command.add_argument_group("tables (CSV, JSON Lines, Parquet)")
    for name, what in (("entity", "entities"), ("address", "IP addresses"), ("time", "times")):
        tables.add_argument(
            f"--{name}", metavar="COLUMN", help=f"the column of {what}. Without it a common name is looked for"
        )
    tables.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="keep rows with this value, such as result=success. It may be given several times",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prepare, and say what was done."""
    readers = Options(
        clock=_clock(options),
        resource=options.resource,
        status=frozenset(map(str.strip, options.status.split(","))) if options.status else None,
        forwarded=options.forwarded,
        cloudtrail=options.cloudtrail,
        entity=options.entity,
        address=options.address,
        time=options.time,
        where=tuple(map(_condition, options.where)),
    )
    split = Split.parse(options.split)
    files = sources(options.log, options.out)
    paths = [file for file in files if file]
    total = size(paths) if len(paths) == len(files) else None  # nobody knows how much standard input brings
    with tqdm(total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        prepared = prepare(
            files,
            options.out,
            readers,
            split,
            format_=FORMATS[options.format] if options.format else None,
            prefixed=options.entity_prefix,
            force=options.force,
            progress=bar.update,
        )
    for line in report.lines(prepared):
        print(one_line(line))
    sys.stdout.flush()
    for note in report.notes(prepared):
        print(f"Note: {one_line(note)}", file=sys.stderr)
    if not prepared.count.kept:
        raise UserError(report.why_none(prepared))


def _condition(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not equals or not column:
        raise UserError(f"--where is {brief(text)}: it must be a column and its value, such as result=success")
    return column, value


def _clock(options: argparse.Namespace) -> Clock:
    try:
        zone = UTC if options.time_zone == "UTC" else ZoneInfo(options.time_zone)  # some images know no zones
    except (ValueError, OSError, LookupError) as error:
        raise UserError(
            f"--time-zone is {brief(options.time_zone)}: it must be a name that this machine knows, "
            "such as Europe/Berlin (pip install tzdata brings all)"
        ) from error
    if options.year is not None and not 1970 <= options.year < 9990:
        raise UserError(f"--year is {options.year}: it must be from 1970 on")
    return Clock(zone, options.year, options.time_format)
