"""The models that a server has loaded: one, or, on a multi-model endpoint, any number by name.

The store keeps them within a memory limit. To make room for another model it evicts the least recently used ones. An
evicted model stays on the list, and the store reopens it when the next request for it arrives, which takes a moment.
So the platform's list of loaded models stays true, and the platform need not load a model twice.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from ipinsights.errors import UserError
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer, require_trained

_PATIENCE = 1
"""Seconds that a model waits for memory in use. Then it is opened all the same, beyond the limit."""

ONLY = ""
"""The name of the model on an endpoint that has one model."""


class NotLoaded(UserError):
    """No model of that name is loaded."""


class AlreadyLoaded(UserError):
    """A model of that name is loaded already."""


class OutOfMemory(UserError):
    """The model does not fit in memory, or not within the limit."""


class _Entry:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scorer: Scorer | None = None
        self.size = 0
        """Bytes that it takes; 0 while it is evicted."""
        self.users = 0


class Loan:
    """A model in use by one request."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        """There until the model is given back."""


class ModelStore:
    """Loads, lends and unloads models. What is loaded before a fork, the processes share."""

    def __init__(self, limit: int | None = None, untrained: bool = False, verify: bool = True) -> None:
        """``limit`` is the number of bytes that all open models may take together.

        An untrained model is rejected unless ``untrained`` accepts it. With ``verify`` each model is read once to find
        damage, whenever it is opened.
        """
        self._limit = limit
        self._untrained = untrained
        self._verify = verify
        self._taken = 0
        """Bytes of all models that are open or being opened."""
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """Least recently used first."""
        self._loading: set[str] = set()
        self._opening = threading.Lock()
        """Held while a model is opened, so they are opened one at a time. Using an open model does not need it."""
        self._lock = threading.Condition()
        """Guards the entries. It is notified when a user gives a model back."""

    def load(self, name: str, folder: Path) -> None:
        """Open the model in a folder. Raises AlreadyLoaded, OutOfMemory, or UserError if it cannot be read."""
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
        """Remove a model: wait until nobody uses it, then free its memory. Raises NotLoaded."""
        with self._lock:
            entry = self._entry(name)
            del self._entries[name]
            self._lock.wait_for(lambda: entry.users == 0)
            self._evict(entry)

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

    @contextlib.contextmanager
    def borrow(self, name: str) -> Iterator[Loan]:
        """Lend a model for the length of a with block, and keep it loaded meanwhile; an evicted one is reopened.

        Pass ``loan.scorer`` on, but keep it in no variable that outlives the block: `unload` waits for the end of the
        block, and only when the last reference to the scorer is gone is the memory free. Raises NotLoaded, or
        OutOfMemory if an evicted model no longer fits.
        """
        with self._lock:
            entry = self._entry(name)
            self._entries.move_to_end(name)
            entry.users += 1
        try:
            loan = Loan(entry.scorer or self._reopen(name, entry))
            try:
                yield loan
            finally:
                del loan.scorer
        finally:
            with self._lock:
                entry.users -= 1
                self._lock.notify_all()

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise NotLoaded(f"no model {name!r} is loaded")
        return self._entries[name]

    def _reopen(self, name: str, entry: _Entry) -> Scorer:
        try:
            with self._opening:
                return self._open(entry)
        except OutOfMemory:
            raise
        except UserError as error:
            raise NotLoaded(f"the model {name!r} could not be reopened: {error}") from error

    def _open(self, entry: _Entry) -> Scorer:
        if entry.scorer is None:
            try:
                model = artifact.load(entry.folder, self._verify)
                if not self._untrained:
                    require_trained(model, entry.folder)
                entry.size = self._make_room(entry.folder, Scorer.memory(model))
                entry.scorer = Scorer(model)
            except BaseException as error:
                with self._lock:
                    self._evict(entry)
                if isinstance(error, MemoryError):
                    raise OutOfMemory(f"there is no memory for the model in {entry.folder}") from None
                raise
        return entry.scorer

    def _make_room(self, folder: Path, size: int) -> int:
        """Reserve memory for a model, and evict others if necessary. Returns its size."""
        limit = self._limit
        if limit is not None and size > limit:
            raise OutOfMemory(f"the model in {folder} takes {size:,} bytes; the limit for all models is {limit:,}")
        with self._lock:
            if limit is not None and not self._lock.wait_for(lambda: self._fits(size, limit), timeout=_PATIENCE):
                self._fits(size, limit, even_used=True)  # a request that uses one keeps it until it is answered
            self._taken += size
        return size

    def _fits(self, size: int, limit: int, even_used: bool = False) -> bool:
        """Whether there is room for so many bytes, after evicting as many unused models as that takes."""
        for entry in self._entries.values():
            if self._taken + size <= limit:
                break
            if entry.users == 0 or even_used:
                self._evict(entry)
        return self._taken + size <= limit

    def _evict(self, entry: _Entry) -> None:
        self._taken -= entry.size
        entry.scorer, entry.size = None, 0
