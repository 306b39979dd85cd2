"""The models that a server has open: one, or, on a multi-model endpoint, any number by name.

Together they keep within a limit of memory. For a further one those are put aside that were longest not asked; they
stay on the list, and are opened again when they are asked, which takes a moment. So the platform's view of what is
loaded stays true, and it need not load anew.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ipinsights.errors import UserError
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer

Answer = TypeVar("Answer")

_PATIENCE = 1
"""Seconds that a model to be opened waits for requests to others, rather than that these go beyond the limit."""

ONLY = ""
"""The name of a model that has no other beside it."""


class NotLoaded(UserError):
    """No model has that name."""


class AlreadyLoaded(UserError):
    """A model has that name."""


class OutOfMemory(UserError):
    """The model does not fit."""


class _Entry:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scorer: Scorer | None = None
        self.size = 0
        """Bytes that it takes; 0 while it is put aside."""
        self.users = 0


class ModelStore:
    """Holds scorers. Load one before forking and workers share its pages."""

    def __init__(self, limit: int | None = None) -> None:
        """With a ``limit`` in bytes of what they take together."""
        self._limit = limit
        self._taken = 0
        """Bytes of all that are open, or about to be."""
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """Longest not asked first."""
        self._loading: set[str] = set()
        self._opening = threading.Lock()
        """Held while a model is opened, so one at a time; not needed to use those that are open."""
        self._lock = threading.Condition()
        """Of the entries. Tells when a use has ended."""

    def load(self, name: str, folder: Path) -> None:
        """Map the model in a folder. Raises AlreadyLoaded, OutOfMemory, or UserError where it cannot be read."""
        with self._lock:
            if name in self._entries or name in self._loading:
                raise AlreadyLoaded(f"a model {name!r} is loaded already")
            self._loading.add(name)
        entry = _Entry(folder)
        try:
            with self._opening:
                self._open(entry)
                with self._lock:
                    self._entries[name] = entry
        finally:
            with self._lock:
                self._loading.remove(name)

    def unload(self, name: str) -> None:
        """Forget a model, once the requests to it are answered, and free its memory. Raises NotLoaded."""
        with self._lock:
            entry = self._entry(name)
            del self._entries[name]
            self._lock.wait_for(lambda: entry.users == 0)
            self._put_aside(entry)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def folder(self, name: str) -> Path:
        """The folder of a model. Raises NotLoaded."""
        with self._lock:
            return self._entry(name).folder

    def folders(self) -> dict[str, Path]:
        """The folder of each model."""
        with self._lock:
            return {name: entry.folder for name, entry in self._entries.items()}

    def ask(self, name: str, question: Callable[[Scorer], Answer]) -> Answer:
        """What a function gives for the scorer of a model, which stays open meanwhile.

        It is a function so that nobody holds the scorer afterwards. Raises NotLoaded; OutOfMemory where it was put
        aside and does not fit any more.
        """
        with self._lock:
            entry = self._entry(name)
            self._entries.move_to_end(name)
            entry.users += 1
        try:
            return question(entry.scorer or self._open_again(name, entry))
        finally:
            with self._lock:
                entry.users -= 1
                self._lock.notify_all()

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise NotLoaded(f"no model {name!r} is loaded")
        return self._entries[name]

    def _open_again(self, name: str, entry: _Entry) -> Scorer:
        try:
            with self._opening:
                return self._open(entry)
        except OutOfMemory:
            raise
        except UserError as error:
            raise NotLoaded(f"the model {name!r} could not be opened again: {error}") from error

    def _open(self, entry: _Entry) -> Scorer:
        if entry.scorer is None:
            try:
                model, _ = artifact.load(entry.folder)
                entry.size = self._make_room(entry.folder, Scorer.memory(model))
                entry.scorer = Scorer(model)
            except BaseException as error:
                with self._lock:
                    self._put_aside(entry)
                if isinstance(error, MemoryError):
                    raise OutOfMemory(f"there is no memory for the model in {entry.folder}") from None
                raise
        return entry.scorer

    def _make_room(self, folder: Path, size: int) -> int:
        """Put aside what was longest not asked, until there is room for a model; its size."""
        limit = self._limit
        if limit is not None and size > limit:
            raise OutOfMemory(f"the model in {folder} takes {size:,} bytes; all together may take {limit:,}")
        with self._lock:
            if limit is not None and not self._lock.wait_for(lambda: self._fits(size, limit), timeout=_PATIENCE):
                self._fits(size, limit, even_used=True)  # who uses one has it until the answer is written
            self._taken += size
        return size

    def _fits(self, size: int, limit: int, even_used: bool = False) -> bool:
        """Whether there is room, once what nobody uses is put aside as far as necessary."""
        for entry in self._entries.values():
            if self._taken + size <= limit:
                break
            if entry.users == 0 or even_used:
                self._put_aside(entry)
        return self._taken + size <= limit

    def _put_aside(self, entry: _Entry) -> None:
        self._taken -= entry.size
        entry.scorer, entry.size = None, 0
