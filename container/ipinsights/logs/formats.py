"""The formats of logs, and which of them a text has."""

from ipinsights.data.formats import recognise
from ipinsights.data.malformed import shown
from ipinsights.errors import UserError
from ipinsights.logs import access, cloudtrail, columns, entra, flow, okta, sshd, windows
from ipinsights.logs.options import Format, Options
from ipinsights.logs.text import Text

FORMATS = {
    format_.name: format_
    for format_ in (
        *(access.FORMAT, sshd.FORMAT, cloudtrail.FORMAT, windows.FORMAT, okta.FORMAT, entra.FORMAT, flow.FORMAT),
        columns.FORMAT,  # the last, since others are tables, too
    )
}
"""By their names. A text has the first that knows it."""
_EMPTY_JSON = ("", "[]", '{"Records":[]}', '{"records":[]}')


def find(text: Text, options: Options) -> Format | None:
    """The format of a text by its beginning; None if it holds nothing. Raises UserError if no format knows it."""
    if "".join(text.head.split()) in _EMPTY_JSON:
        return None
    for format_ in FORMATS.values():
        if format_.knows(text, options):
            return format_
    look = recognise(text.first)
    looks = f" It looks like {look.name}: unpack or convert it." if look and look.binary else ""
    known = "; ".join(f"{format_.name}: {format_.about}" for format_ in FORMATS.values())
    begins = "" if looks else f" It begins with {shown(next(iter(text.head_lines()), ''))}."
    raise UserError(
        f"{text.name} has no format that is known here.{looks}{begins} The formats are {known}. Name one with "
        "--format, or the columns with --entity and --address"
    )
