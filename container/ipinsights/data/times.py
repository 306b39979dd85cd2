"""Times as text: the optional third column of log-ins.

Two forms leave nothing to guess, so they are read: ISO 8601 (``2026-01-02T03:04:05Z``, also with a blank for the T,
with a fraction, with an offset such as ``+01:00``, or without any, which means UTC; or a date alone) and Unix time, in
seconds (9 or 10 digits, maybe with a fraction) or milliseconds (12 or 13 digits).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Times = npt.NDArray[np.datetime64]
"""Whole seconds of UTC, datetime64[s]. NaT where there is none."""

_ISO = r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?"
_FORM = rf"^(?:{_ISO}|\d{{9,10}}(?:\.\d{{1,9}})?|\d{{12,13}})$"
_ZONE = r"[0-9]{2}:[0-9]{2}.*(?:Z|[+-]\d\d:?\d\d)$"


def none(size: int) -> Times:
    """No time for each of ``size`` rows."""
    return np.full(size, "NaT", dtype="datetime64[s]")


def read(texts: pa.StringArray) -> tuple[Times, npt.NDArray[np.bool_]]:
    """The time of each text, [n], and which texts are times. What is none becomes NaT."""
    form = pc.match_substring_regex(texts, _FORM)
    unix = pc.invert(pc.match_substring(texts, "-"))
    stamps = pc.if_else(pc.and_(form, unix), texts, None)
    milliseconds = pc.greater(pc.utf8_length(stamps), 11) if len(texts) else pa.array([], pa.bool_())
    whole = pc.cast(pc.replace_substring_regex(stamps, r"\..*", ""), pa.int64())
    dotted = pc.match_substring(stamps, ".")
    seconds = pc.if_else(pc.and_not(milliseconds, dotted), pc.divide(whole, 1000), whole)
    iso = pc.if_else(pc.and_not(form, unix), texts, None)
    zoned = pc.match_substring_regex(iso, _ZONE)
    dates = pc.equal(pc.utf8_length(iso), 10)
    complete = pc.if_else(dates, pc.binary_join_element_wise(iso, " 00:00", ""), iso)
    complete = pc.if_else(zoned, complete, pc.binary_join_element_wise(complete, "Z", ""))
    found = pc.coalesce(_cast(complete), seconds)
    values = pc.fill_null(found, np.iinfo(np.int64).min).to_numpy(zero_copy_only=False).view("datetime64[s]")
    return values, pc.is_valid(found).to_numpy(zero_copy_only=False)


def render(times: Times | Sequence[np.datetime64]) -> list[str]:
    """The text of each time, in ISO 8601 with a Z; "" for NaT."""
    texts: list[str] = np.datetime_as_string(np.array(times, dtype="datetime64[s]")).tolist()
    return ["" if text == "NaT" else f"{text}Z" for text in texts]


def _cast(texts: pa.StringArray) -> pa.Array:
    """Seconds since 1970 of complete texts; null for what no calendar has, such as month 13."""
    try:
        times = pc.floor_temporal(pc.cast(texts, pa.timestamp("ns", "UTC")), unit="second")
        return times.cast(pa.timestamp("s", "UTC")).cast(pa.int64())
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return pa.nulls(1, pa.int64())
        half = len(texts) // 2
        return pa.concat_arrays([_cast(texts[:half]), _cast(texts[half:])])
