"""Changes of good inputs: hypothesis finds and shortens those that a parser does not survive."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

_WORDS = (
    *b', " \\ ; : { } [ ] [] {} "" null true -1 1e999 ::1%x 1.2.3.4 \\ud800'.split(),
    *(b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"9" * 30, b"[" * 3000, b'{"":' * 3000),
)
_PIECES = st.sampled_from(_WORDS) | st.binary(max_size=8)
_EDITS = st.tuples(st.floats(0, 1), st.integers(0, 40), _PIECES)
"""Where, how many bytes are left out there, and what comes in their place."""


def _edited(text: bytes, edits: Sequence[tuple[float, int, bytes]]) -> bytes:
    for where, length, piece in edits:
        at = round(where * len(text))
        text = text[:at] + piece + text[at + length :]
    return text


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from([-1, 0, 1, 2**40]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


def _places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values of a document of JSON."""
    yield path
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from _places(value, (*path, key))


def _with(document: Any, path: Sequence[Any], value: object) -> Any:
    """A document with another value at a path."""
    if not path:
        return value
    copied = document.copy()
    copied[path[0]] = _with(document[path[0]], path[1:], value)
    return copied


def _documents(text: bytes) -> st.SearchStrategy[bytes]:
    """A document of JSON with another value somewhere; nothing if the text is none."""
    try:
        document = json.loads(text)
    except ValueError:
        return st.nothing()
    return st.builds(
        lambda path, value: json.dumps(_with(document, path, value)).encode(),
        st.sampled_from([*_places(document)]),
        _VALUES,
    )


def changed(inputs: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Inputs, each with some changes, and now and then any bytes."""
    edited = st.builds(_edited, st.sampled_from(inputs), st.lists(_EDITS, max_size=4))
    return st.one_of(edited, st.binary(max_size=200), *map(_documents, inputs))
