"""Logs of sshd as syslog, rsyslog or ``journalctl`` write them. The entity is the account, whatever the host."""

import re
from collections.abc import Iterator

from ipinsights.logs.options import Format, Options
from ipinsights.logs.rows import FAILED, OTHER, LogIn, Malformed, Outcome, Row, judged
from ipinsights.logs.text import Text

_TIME = r"([A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?)"
_LINE = re.compile(rf"(?:<\d+>)?{_TIME} \S+ [^\s:]+: ")
_SSHD = re.compile(rf"(?:<\d+>)?{_TIME} \S+ sshd(?:-session|-auth)?(?:\[\d+\])?: (.*)")
_CANDIDATE = re.compile(r"Accepted \S+ for ")  # "Accepted key ..." tells of a key that is looked at
_ACCEPTED = re.compile(r"Accepted \S+ for (.+?) from (\S+) port \d+(?: |$)")


def _knows(text: Text, _: Options) -> bool:
    lines = text.head_lines()
    return 2 * sum(_LINE.match(line) is not None for line in lines) > len(lines)


def _rows(text: Text, options: Options) -> Iterator[Row]:
    clock, syslog = options.clock, options.clock.syslog(text.modified, text.name)

    def judge(line: str) -> Outcome:
        if " sshd" not in line or not (found := _SSHD.match(line)):
            return OTHER
        time, message = found.groups()
        if message.startswith("Failed "):
            return FAILED
        if not _CANDIDATE.match(message):
            return OTHER
        accepted = _ACCEPTED.match(message)
        if not accepted:
            return Malformed('not "Accepted METHOD for USER from ADDRESS port NUMBER"')
        user, address = accepted.groups()
        return LogIn(user, address, syslog(time) if time[0].isalpha() else clock.iso(time))

    return judged(text.lines(), judge)


FORMAT = Format("sshd", "syslog or journal of sshd", _knows, _rows)
