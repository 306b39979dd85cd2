"""Two kinds of failure: one that the user can correct, and one that we must correct."""

import errno
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """The input is wrong: a hyperparameter, a file, a request. The text says what is wrong, where, and what to do."""


class AlgorithmError(Exception):
    """The program is wrong. The text says what it was doing; the cause is chained."""


_quoting = True

_SHOWN = 120
"""Characters of a value that a message quotes."""


def brief(value: object) -> str:
    """A value that somebody gave, as a message quotes it: on one line, and without its middle if it is long or deep."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 4, _SHOWN, _SHOWN
    return short.repr(value)


def quote_data(whether: bool) -> None:
    """Say whether messages of this process, and of those that it forks, quote what the data holds.

    That is entities, addresses and rows. Without, messages still tell where something is and of which kind.
    """
    global _quoting
    _quoting = whether


def quoted(text: str, instead: str = "(not shown)") -> str:
    """A text with something of the data in it, as a message may have it."""
    return text if _quoting else instead


def one_line(text: str) -> str:
    """A text without what a terminal or a log would take for the end of its line or for a command, shown as escapes."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def refusal(action: str, path: object, error: OSError) -> UserError:
    """A refusal by the system, of something that the user gave: what was refused, why, and what to do.

    ``action`` is what we wanted to do, such as "read", and ``path`` with what.
    """
    reason = error.strerror or str(error)
    advice = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        advice = f". Give user {os.geteuid()}, who runs this, the permission"
    elif error.errno == errno.EROFS:
        advice = ". Mount it so that it can be written, or name another folder"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = ". Free some, or use a larger volume"
    elif error.errno == errno.EFBIG:
        advice = ". Raise the limit on the size of a file (ulimit -f), or use a file system that takes larger ones"
    return UserError(f"cannot {action} {path}: {reason}{advice}")


@contextmanager
def refusals(action: str, path: object) -> Iterator[None]:
    """Turn each OSError into `refusal`. Where the system names a path, that one is told."""
    try:
        yield
    except OSError as error:
        raise refusal(action, error.filename or path, error) from error
