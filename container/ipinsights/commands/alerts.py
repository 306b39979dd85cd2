"""``ipinsights alerts``: which log-ins to look at, worst first, each with its reason."""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ipinsights.alerts import seen
from ipinsights.alerts.listing import BUDGET, Alert, Alerts, find
from ipinsights.commands.options import LOG_INS, Commands, add_log_ins, add_model, log_ins, open_model, positive
from ipinsights.data import times
from ipinsights.errors import UserError, one_line
from ipinsights.model.model import Model

_RARE = 0.1
COLUMNS = "entity", "entity_known", "network", "address", "log_ins", "first", "last", "score", "percentile", "reason"


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "alerts",
        help="list the log-ins to look at, worst first, each with its reason",
        description="List the log-ins to look at, worst first, each with its reason. A line stands for all log-ins of "
        "an account from a network (/24, or /64 of IPv6). Accounts that training never saw have a list of their own: "
        "nothing is known of their habits, so it ranks how unusual the place is for anybody. Log-ins that score 0 or "
        "more are left out if the account has used the network, or if more than a tenth of ordinary log-ins score no "
        "higher. "
        f"{LOG_INS}",
    )
    add_log_ins(command)
    command.add_argument(
        "--joined",
        action="store_true",
        help="the files are what Batch Transform has joined with its input (JoinSource=Input, text/csv): what stands "
        "behind the entity, the address and the time is passed over",
    )
    add_model(command)
    how_many = command.add_mutually_exclusive_group()
    how_many.add_argument(
        "--budget", type=positive, default=BUDGET, metavar="N", help=f"so many lines a day at most (default {BUDGET})"
    )
    how_many.add_argument(
        "--max-false-alarms",
        type=_share,
        metavar="SHARE",
        help="in place of a budget: list log-ins that score so low that only this share of ordinary ones does (.001)",
    )
    command.add_argument(
        "--known", type=Path, metavar="FILE", help="leave out the accounts and networks in this file (entity,network)"
    )
    command.add_argument("--mark", action="store_true", help="add what is listed to the file of --known")
    command.add_argument(
        "--format", choices=tuple(_WRITERS), default="text", help="how to write the list (default text)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Find, write, and mark."""
    if options.mark and options.known is None:
        raise UserError("--mark adds to the file of --known: name one")
    model = open_model(options.model)
    looked_at = seen.read(options.known, missing=options.mark) if options.known else set()
    budget = None if options.max_false_alarms is not None else options.budget
    alerts = find(
        model,
        log_ins(options, model.family, options.joined),
        budget=budget,
        max_false_alarms=options.max_false_alarms,
        seen=looked_at,
    )
    _WRITERS[options.format](alerts, model)
    sys.stdout.flush()
    if options.mark:
        seen.mark(options.known, alerts)


def _text(alerts: Alerts, model: Model) -> None:
    """For a person at a terminal."""
    days = f" on {alerts.days:,} days" if alerts.days > 1 else ""
    looked_through = f"{_counted(alerts.log_ins, 'log-in')} of {_counted(alerts.accounts, 'account')}{days}"
    print(f"{looked_through}: {len(alerts)} to look at")
    if len(alerts):
        print("Reasons count the log-ins that training learnt from. Those that validated it are not among them")
    if alerts.seen_before:
        print(f"{alerts.seen_before:,} were left out, because they were looked at before")
    if model.calibration is None:
        print("The model is not calibrated, so the list is by score and cannot say how unusual a score is")
    if model.index.sharing:
        print("Accounts share rows of the model, so it cannot tell which ones training saw: all are in one list")
    for title, listed in (
        (f"Known accounts: {len(alerts.known)}", alerts.known),
        (f"Accounts that training never saw: {len(alerts.new)} (of {alerts.new_accounts:,})", alerts.new),
    ):
        if listed:
            print(f"\n{title}\n")
        for number, alert in enumerate(listed, start=1):
            print(f"{number:>3}  {one_line(alert.entity)} from {alert.network}{_when(alert)}. {_unusual(alert, model)}")
            print(f"     {alert.reason}")


def _csv(alerts: Alerts, model: Model) -> None:
    """With a header."""
    del model
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in _rows(alerts):
        writer.writerow(
            "" if value is None else str(value).lower() if isinstance(value, bool) else value for value in row
        )


def _json_lines(alerts: Alerts, model: Model) -> None:
    """An object a line."""
    del model
    for row in _rows(alerts):
        print(json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False))


_WRITERS: dict[str, Callable[[Alerts, Model], None]] = {"text": _text, "csv": _csv, "jsonl": _json_lines}


def _rows(alerts: Alerts) -> Iterator[tuple[Any, ...]]:
    """The values of each line, by COLUMNS: first the known accounts, then the new ones."""
    for alert in alerts:
        first, last = (text or None for text in times.render([alert.first, alert.last]))
        yield (
            *(alert.entity, alert.known, alert.network, alert.address, alert.log_ins, first, last),
            *(round(alert.score, 4), alert.percentile, alert.reason),
        )


def _when(alert: Alert) -> str:
    first, last = (text.replace("T", " ")[:-4] for text in times.render([alert.first, alert.last]))
    often = f", {alert.log_ins:,} log-ins" if alert.log_ins > 1 else ""
    if not first:
        return often
    if first == last:
        return f"{often}, {first}"
    return f"{often}, {first} to {last[11:] if last[:10] == first[:10] else last}"


def _unusual(alert: Alert, model: Model) -> str:
    """The score, and what it means."""
    score = f"Score {alert.score:.1f}"
    if alert.percentile is None or model.calibration is None:
        return score
    size = len(model.calibration.new if alert.known is False else model.calibration.known)
    whose = "of new accounts " if alert.known is False else ""
    if alert.percentile * (size + 1) < 1.5:
        return f"{score}: none of {size:,} ordinary log-ins {whose}was so low"
    if alert.percentile < _RARE:
        return f"{score}: 1 in {round(1 / alert.percentile):,} ordinary log-ins {whose}is so low"
    return f"{score}: {alert.percentile:.0%} of ordinary log-ins {whose}are so low"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1, such as .001")
    return share
