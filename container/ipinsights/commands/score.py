"""``ipinsights score``: append a score to each line of CSV files."""

import argparse
import csv
import heapq
import json
import math
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipinsights.commands.options import CSV, STANDARD_INPUT, Commands, add_model, open_scorer, positive, texts
from ipinsights.data.columns import salvage_table
from ipinsights.data.malformed import SHOWN, Fault, Kind, Malformed
from ipinsights.data.records import Block, Hashed, append_scores, line_blocks, record_lines
from ipinsights.errors import UserError, brief
from ipinsights.logs.columns import by_name
from ipinsights.model.scoring import Scorer


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "score",
        help="append a score to each line of CSV files",
        description="Write each line of CSV files again with its score appended. A higher score is more normal. Below "
        f"0 the model takes the pair for fabricated. The command needs constant memory. {CSV} A third column may be "
        "the time. With --header, other columns are kept. The output is CSV, too: to sort it, use --lowest or a "
        "program that reads CSV, since a quoted entity may hold commas.",
    )
    add_model(command)
    command.add_argument(
        "file",
        type=Path,
        nargs="*",
        default=[STANDARD_INPUT],
        help="files and folders to score. Without any, or with -, the command reads standard input",
    )
    command.add_argument(
        "--header",
        action="store_true",
        help="the first line of each file names its columns. Those of the entity and of the address are found by their "
        "names, or named by --entity and --address. All columns are kept",
    )
    command.add_argument("--entity", metavar="COLUMN", help="with --header, the column of the entity")
    command.add_argument("--address", metavar="COLUMN", help="with --header, the column of the address")
    command.add_argument("--lowest", type=positive, metavar="N", help="write only the N lowest scores, lowest first")
    command.add_argument("--json", action="store_true", help="write JSON Lines in place of CSV")
    command.add_argument(
        "--malformed",
        choices=("fail", "skip", "mark"),
        default="fail",
        help="what to do about malformed rows: fail at the first (the default), skip and count them, or give them the "
        "score nan (in JSON null)",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Score files as they are read."""
    if (options.entity or options.address) and not options.header:
        raise UserError("--entity and --address name columns of a header: add --header")
    scorer = open_scorer(options.model)
    malformed = Malformed()
    lowest: list[tuple[float, int, bytes]] = []
    header: _Header | None = None
    write = _json if options.json else _csv
    out = sys.stdout.buffer
    count = 0
    for text in texts(options.file):
        for block in line_blocks(text, text.name):
            if options.header and block.first_line == 1:
                header, begun = _header(block, options), header
                if begun and begun.line != header.line:
                    raise UserError(
                        f"{block.name} has the columns {brief(header.names)}, and a file before {brief(begun.names)}"
                    )
                if not begun and not options.json:
                    out.write(header.line + b",score\n")
            salvaged = _with_header(block, header, scorer) if header else block.salvage(scorer.family)
            scores = scorer.score_hashed(*salvaged.pairs)
            if salvaged.faults and options.malformed == "fail":
                raise block.error([*salvaged.faults.values()], scorer.family)
            if not (header or salvaged.faults or options.json or options.lowest):
                out.write(append_scores(block.text, scores))
                continue
            lines = _lines(block, header)
            malformed.add(block.name, [*salvaged.faults.values()])
            if options.malformed == "skip":
                lines = [line for row, line in enumerate(lines) if row not in salvaged.faults]
            else:
                scores = _marked(scores, salvaged.faults, len(lines))
            if options.lowest:
                rows = zip(scores.tolist(), range(count, count + len(lines)), lines, strict=True)
                lowest = heapq.nsmallest(options.lowest, [*lowest, *(row for row in rows if not math.isnan(row[0]))])
                count += len(lines)
            else:
                out.write(write(lines, scores.tolist(), header))
    if options.lowest:
        out.write(write([line for *_, line in lowest], [score for score, *_ in lowest], header))
    out.flush()
    if malformed.count:
        what = "Skipped" if options.malformed == "skip" else "Marked"
        print(f"{what} {malformed.count:,} malformed rows: {malformed.told}: {malformed}", file=sys.stderr)


class _Header(NamedTuple):
    """The first line of a file, which names its columns."""

    line: bytes
    names: list[str]
    entity: int
    """The places of the two columns."""
    address: int


def _header(block: Block, options: argparse.Namespace) -> _Header:
    """That of a file's first block. Raises UserError if it has no such columns."""
    _, line = next(record_lines(block.text), (0, b""))
    names = [name.strip() for name in _fields(line) or []]
    by_itself = by_name(names)
    places = []
    for what, named, found in (("entity", options.entity, by_itself[0]), ("address", options.address, by_itself[1])):
        name = named or found
        if name not in names:
            missing = f"no column {brief(named)}" if named else f"no column whose name tells the {what}"
            raise UserError(f"{block.name} has {missing}; it has {brief(names)}. Name it with --{what}")
        places.append(names.index(name))
    return _Header(line, names, *places)


def _with_header(block: Block, header: _Header, scorer: Scorer) -> Hashed:
    """The pairs in the columns that a header names, and the faults of other rows, by their index."""
    rows, faults = [], {}
    numbers = [number for number, _ in record_lines(block.text, block.first_line)][block.first_line == 1 :]
    for row, line in enumerate(_lines(block, header)):
        fields = _fields(line)
        if fields is None or len(fields) != len(header.names):
            found = "wrong quotes" if fields is None else f"{len(fields)} columns, and the header {len(header.names)}"
            kind = Kind.QUOTES if fields is None else Kind.TOO_FEW if len(fields) < len(header.names) else Kind.TOO_MANY
            shown = line[: 4 * SHOWN].decode(errors="replace")[:SHOWN]
            faults[row] = Fault(numbers[row], shown, f"the line has {found}", kind)
            fields = [""] * len(header.names)
        rows.append((fields[header.entity], fields[header.address]))
    entities, addresses = (pa.array([row[place] for row in rows], pa.string()) for place in (0, 1))
    salvaged = salvage_table(entities, addresses, scorer.family)
    for row, fault in salvaged.faults_by_row().items():
        faults.setdefault(row, fault.at(numbers[row]))
    return Hashed(salvaged.records.hashed(), dict(sorted(faults.items())), salvaged.removed)


def _lines(block: Block, header: _Header | None) -> list[bytes]:
    """The lines of a block that hold rows."""
    lines = [line for _, line in record_lines(block.text)]
    return lines[1:] if header and block.first_line == 1 else lines


def _fields(line: bytes) -> list[str] | None:
    """The fields of a line; None if it is no CSV in UTF-8."""
    try:
        (fields,) = csv.reader([line.decode()], strict=True)
    except (csv.Error, UnicodeDecodeError, ValueError):
        return None
    return fields


def _marked(scores: npt.NDArray[np.float32], faults: Collection[int], rows: int) -> npt.NDArray[np.float32]:
    """The score of each row: nan where it is malformed."""
    marked = np.full(rows, np.nan, dtype=np.float32)
    readable = np.ones(rows, dtype=np.bool_)
    readable[list(faults)] = False
    marked[readable] = scores
    return marked


def _csv(lines: Sequence[bytes], scores: Sequence[float], header: _Header | None) -> bytes:
    del header
    return b"".join(b"%s,%.9g\n" % row for row in zip(lines, scores, strict=True))


def _json(lines: Sequence[bytes], scores: Sequence[float], header: _Header | None) -> bytes:
    names = header.names if header else ["entity", "address", "time"]
    rows = (
        {**dict(zip(names, _fields(line) or [line.decode(errors="replace")], strict=False)), "score": _number(score)}
        for line, score in zip(lines, scores, strict=True)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _number(score: float) -> float | None:
    return None if math.isnan(score) else float(f"{score:.9g}")
