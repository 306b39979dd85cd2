"""What is wrong with a row: its kind, its reason, and an account of all malformed rows.

Host names in a third of all rows and damage in three of them are two different facts, so rows are counted by kind, and
the first of each kind is shown. A remedy is told once, behind them.
"""

import functools
import re
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ipinsights.data import addresses
from ipinsights.data.addresses import Family
from ipinsights.errors import UserError, quoted

LONGEST_LINE = 1 << 20
"""Bytes that a line may have, without its end (``reader.cpp`` has the same number)."""

SHOWN = 120
"""Characters of a faulty row that an error shows."""
_EXPLAINED = 20
"""Addresses of a batch of rows that are explained in detail, which is slow: more than are ever listed."""
_LISTED = 3
"""Rows that an error lists if all are of one kind; of several kinds, it lists the first of each."""
_CONTENT, _REASON, _PATH = 60, 100, 80
"""Limits in characters for what an account shows of a row, of the fault in it and of its file's path."""

_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother = 4, SHOWN, SHOWN
_briefer = reprlib.Repr()
_briefer.maxstring = _CONTENT


class Kind(Enum):
    """What can be wrong with a row: what such rows are, and, where the address is at fault, what is in its place."""

    EMPTY = "with an empty address", "it is empty"
    PLACEHOLDER = "with a placeholder for an address", "a placeholder"
    SERVICE = "with the name of an AWS service", "the name of an AWS service"
    HOST_NAME = "with a host name", "a host name"
    IPV6 = "with an IPv6 address", "an IPv6 address"
    ZONE = "with a zone id", "an IPv6 address with a zone id, which means nothing to another host"
    PORT = "with an unreadable port", "a port that is no number up to 65535, or without brackets around the address"
    SEVERAL = "with several addresses", "several addresses"
    NETWORK = "with a network", "a network, since a mask follows"
    HEADER = "with column names", "a column's name"
    NO_ADDRESS = "with other text for an address", ""
    NO_ENTITY = "without an entity", ""
    TOO_FEW = "with too few columns", ""
    TOO_MANY = "with too many columns", ""
    QUOTES = "with wrong quotes", ""
    ENCODING = "not in UTF-8", ""
    TOO_LONG = "longer than 1 MB", ""
    NOT_JSON = "not in JSON", ""
    SHAPE = "of another shape than a pair", ""

    @property
    def rows(self) -> str:
        """What such rows are, behind their number."""
        return self.value[0]

    @property
    def found(self) -> str:
        """What is in the place of the address; "" if the address is not at fault or the fault is none of these."""
        return self.value[1]


ABSENT = frozenset({Kind.EMPTY, Kind.PLACEHOLDER, Kind.SERVICE})
"""The kinds of rows that another program wrote on purpose, for events that have no address. They are no damage."""


def spared(malformed_rows: str) -> frozenset[Kind]:
    """The kinds of rows that do not count against the limit on damage, by the hyperparameter of that name."""
    return ABSENT if malformed_rows == "skip_placeholders" else frozenset()


_REMEDIES = {
    Kind.IPV6: "To read IPv6 addresses, train with the hyperparameter ip_version=6.",
    Kind.HEADER: "Remove header lines.",
}
_ABSENT_TEXTS = frozenset(
    [
        *("-", "--", "?", "*", "null", "nil", "none", "nan", "na", "n/a", "\\n", "unknown", "undefined", "unavailable"),
        *("local", "localhost", "internal", "private", "hidden", "aws internal", "gce-internal-ip"),
    ]
)
_AWS_SERVICE = re.compile(r"(?!.*\bcompute\b)(?:[a-z0-9-]+\.)+amazonaws\.com(?:\.cn)?\.?")
"""As CloudTrail writes them; but not the host name of a machine, such as ec2-192-0-2-1.compute-1.amazonaws.com."""
_COLUMN_NAME = re.compile(
    r"(?:(?:source|src|destination|dst|dest|client|remote|caller|user|login|host|c|s)?[ _.-]?ip[ _.-]?(?:v?[46])?"
    r"[ _.-]?(?:addr|address)?|(?:source|src|destination|dst|client|remote|caller)?[ _.-]?addr(?:ess)?)"
)
_HOST_NAME = re.compile(
    r"(?=.*[a-z])(?:(?:[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?\.)+[a-z](?:[a-z0-9-]*[a-z0-9])?\.?|[a-z0-9]+(?:-[a-z0-9]+)+)"
    r"(?::[0-9]{1,5})?"
)
_SEPARATORS = re.compile(r"[,;|\s]+")
_AROUND = re.compile(r"[,;|\s%/:]")
"""What there is in an address with something around it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One malformed row."""

    position: int
    """Its line in the text, counted from 1, or its index in a request, counted from 0."""
    content: str
    reason: str
    kind: Kind = Kind.NO_ADDRESS

    def at(self, position: int) -> "Fault":
        """The same elsewhere."""
        return Fault(position, self.content, self.reason, self.kind)

    @property
    def told(self) -> str:
        """The reason and the content."""
        return quoted(f"{self.reason}, in {self.content!r}", self._by_kind)

    @property
    def briefly(self) -> str:
        """The same, shorter."""
        reason = self.reason if len(self.reason) <= _REASON else f"{self.reason[: _REASON - 3]}..."
        return quoted(f"{reason}, in {_briefer.repr(self.content)}", self._by_kind)

    @property
    def advice(self) -> str:
        """The reason, and the remedy if there is one."""
        return ". ".join([quoted(self.reason, self._by_kind), *remedies([self.kind])]).rstrip(".")

    @property
    def _by_kind(self) -> str:
        return f"a row {self.kind.rows}"


class MalformedRecords(UserError):
    """Some rows are malformed; ``faults`` has each, in order."""

    def __init__(self, faults: list[Fault], unit: str, cut: bool = False) -> None:
        """``cut`` means that reading stopped early, so there may be more faults."""
        self.faults = faults
        self.unit = unit
        kinds = count(faults)
        first = {fault.kind: fault for fault in reversed(faults)}
        chosen = [*first.values()][::-1] if len(kinds) > 1 else faults[:_LISTED]
        text = "; ".join(f"{unit} {f.position}: {f.told}" for f in chosen)
        if len(faults) > len(chosen):
            text += f"; and {'at least ' * cut}{len(faults) - len(chosen):,} more"
        if len(kinds) > 1:
            text += f" ({'at least ' * cut}{told(kinds)})"
        super().__init__(". ".join([text, *remedies(kinds)]).rstrip("."))


@dataclass
class Malformed:
    """The malformed rows of a channel."""

    kinds: Counter[Kind] = field(default_factory=Counter)
    """Their number by kind."""
    _examples: dict[Kind, list[str]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Their number."""
        return self.kinds.total()

    @property
    def told(self) -> str:
        """How many are of which kind."""
        return f"all {next(iter(self.kinds)).rows}" if len(self.kinds) == 1 else told(self.kinds)

    def without(self, kinds: Collection[Kind]) -> "Malformed":
        """Those of other kinds."""
        left = Counter({kind: number for kind, number in self.kinds.items() if kind not in kinds})
        return Malformed(left, {kind: self._examples[kind] for kind in left})

    @property
    def examples(self) -> list[str]:
        """File, line, fault and content of the first of each kind; if all are of one kind, of the first few."""
        lists = list(self._examples.values())
        return lists[0] if len(lists) == 1 else [first for first, *_ in lists]

    def add(self, file: str, faults: Sequence[Fault], unit: str = "line") -> None:
        """Add the faults of one more file or block."""
        for fault in faults:
            examples = self._examples.setdefault(fault.kind, [])
            if len(examples) < _LISTED:
                examples.append(f"{brief_path(file)}, {unit} {fault.position}: {fault.briefly}")
        self.kinds.update(count(faults))

    def described(self, room: float = float("inf")) -> str:
        """The examples, as far as there is room for so many characters, and the number of other rows."""
        shown: list[str] = []
        for example in self.examples:
            room -= len(example) + 2
            if room < 0:
                break
            shown.append(example)
        more = self.count - len(shown)
        return "; ".join([*shown, *([f"and {more:,} more"] if more else [])])

    def __str__(self) -> str:
        """The examples, and the number of other rows."""
        return self.described()


def count(faults: Iterable[Fault]) -> Counter[Kind]:
    """The number of faults by kind."""
    return Counter(fault.kind for fault in faults)


def told(kinds: Mapping[Kind, int]) -> str:
    """How many rows are of which kind, the most frequent kind first."""
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    return ", ".join(f"{number:,} {kind.rows}" for kind, number in ordered)


def remedies(kinds: Iterable[Kind]) -> list[str]:
    """What to do about rows of these kinds, a sentence each, where there is more to do than to correct them."""
    present = set(kinds)
    return [remedy for kind, remedy in _REMEDIES.items() if kind in present]


def of_address(text: str, family: Family, before: int) -> tuple[Kind, str]:
    """What is wrong with a text that is no address of the family: its kind, and the reason.

    If ``before`` says that enough were explained before it, a reason that takes time to find is a general one.
    """
    text = text[:SHOWN]  # still longer than any address
    kind = _kind(text, family.version)
    found = kind.found
    if found:
        return kind, f"not an {family.noun}: {found}"
    return kind, addresses.explain(text, family) if before < _EXPLAINED else f"not an {family.noun}"


def shown(value: object) -> str:
    """A value as an error quotes it: short, however long or deeply nested it is."""
    return _brief.repr(value)[:SHOWN]


def brief_path(path: str) -> str:
    """A file's path as an error has it: the end of a long one."""
    return path if len(path) <= _PATH else f"...{path[3 - _PATH :]}"


@functools.lru_cache(1 << 14)
def _kind(text: str, version: int) -> Kind:
    """What a text is that is no address of the family of this IP version."""
    word = text.strip().casefold()
    if not word:
        return Kind.EMPTY
    if word.strip("<>()[]") in _ABSENT_TEXTS:
        return Kind.PLACEHOLDER
    if _COLUMN_NAME.fullmatch(word):
        return Kind.HEADER
    around = _around(text, word, version) if _AROUND.search(word) else None
    if around:
        return around
    if _AWS_SERVICE.fullmatch(word):
        return Kind.SERVICE
    return Kind.HOST_NAME if _HOST_NAME.fullmatch(word) else Kind.NO_ADDRESS


def _around(text: str, word: str, version: int) -> Kind | None:
    """The kind of a text that is an address with something around it, or of IPv6; None if it is none."""
    parts = _SEPARATORS.split(word.strip(",;| "))
    known = [addresses.is_address(part) for part in parts] if len(parts) > 1 else []
    if any(known) and sum(known) + len(_ABSENT_TEXTS.intersection(parts)) > 1:
        return Kind.SEVERAL
    bare, _, zone = word.partition("%")
    if zone and addresses.is_address(bare):
        return Kind.ZONE
    bare, slash, _ = word.partition("/")
    if slash and addresses.is_address(bare):
        return Kind.NETWORK
    bare = addresses.without_port(text) or text
    if version == 4 and ":" in bare and addresses.is_address(bare):
        return Kind.IPV6
    bare, colon, port = word.rpartition(":")
    inner, _, zone = bare.strip("[]").partition("%")
    if colon and addresses.is_address(inner):
        of_ipv6, bracketed = ":" in inner, bare.startswith("[")
        if zone and bracketed:
            return Kind.ZONE
        if (bracketed or port.isdecimal()) if of_ipv6 else not bracketed:
            return Kind.PORT
    return None
