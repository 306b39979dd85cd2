"""The search: what to try next, which training to give up, and which model to keep.

Optuna proposes settings, at first those that a training takes by itself, then by its tree-structured Parzen estimator.
A training whose validation after some epoch is below the median of the others' after as many is given up. All is in a
database in the folder, so a search that was interrupted goes on, first with the trials that it had to break off.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Self

from ipinsights.errors import AlgorithmError, UserError, refusals
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.training.progress import EpochSummary
from ipinsights.tuning.space import Range
from ipinsights.tuning.trials import Tried, Watcher, measure
from ipinsights.tuning.worker import Failed, GivenUp, Trained, Worker

try:
    import optuna
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise UserError("`ipinsights tune` needs Optuna: pip install 'ipinsights[tune]'") from error

STUDY, MODEL = "study.db", "model"
"""In the folder of a search: its database, and the best model."""

_STARTUP_TRIALS, _STARTUP_EPOCHS = 4, 1
"""Before so many trials have ended, and in the first epochs, no training is given up."""
_MOST_IMPOSSIBLE = 100
"""Settings drawn in a row that no training can have."""
_POLL_SECONDS = 0.5
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_REASON = "reason"
"""An attribute of trials that failed by themselves. One that was broken off, or could not begin, has none."""


class Search:
    """A search whose database and best model are in a folder. As a context it has the folder for itself."""

    def __init__(
        self,
        folder: Path,
        ranges: Sequence[Range],
        base: Hyperparameters,
        objective: str,
        subject: Mapping[str, Any],
    ) -> None:
        """Begin, or go on with what is in the folder.

        ``base`` has what is not tuned. ``subject`` says of what data the search is. Raises UserError if the folder has
        a search of something else.
        """
        self._folder, self._ranges, self._base, self._objective = folder, ranges, base, objective
        self._lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise UserError(f"another search is at work in {folder}: wait for it, or name another folder") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        whole = {**subject, "objective": objective, "ranges": [vars(range_) for range_ in ranges]}
        text = json.dumps(whole, sort_keys=True)
        with refusals("write to", folder):
            storage = optuna.storages.RDBStorage(f"sqlite:///{folder / STUDY}")
            self.study = optuna.create_study(
                storage=storage, study_name="ipinsights", direction="maximize", load_if_exists=True
            )
        told = self.study.user_attrs.get("subject")
        if told is None:
            self.study.set_user_attr("subject", text)
        elif told != text:
            before = json.loads(told)
            other = " and ".join(name for name in whole if before.get(name) != json.loads(text)[name])
            raise UserError(f"the search in {folder} has other {other}: name another folder")
        self.study.sampler = optuna.samplers.TPESampler(seed=base.seed + len(self.study.trials))
        self.study.pruner = optuna.pruners.MedianPruner(_STARTUP_TRIALS, _STARTUP_EPOCHS)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._break_off(trial.number, trial.params)
        self._keep_best()
        for rest in folder.glob(".trial-*"):
            shutil.rmtree(rest)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @property
    def tried(self) -> int:
        """Trials that have ended; not those that were broken off."""
        ended = self.study.get_trials(deepcopy=False, states=_ENDED)
        return sum(trial.state != TrialState.FAIL or _REASON in trial.user_attrs for trial in ended)

    @property
    def best(self) -> FrozenTrial | None:
        """The trial whose model is kept; None before there is one."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)

    @property
    def first(self) -> float | None:
        """What the first trial reached; None if it has no model."""
        return next((trial.value for trial in self.study.get_trials(deepcopy=False) if trial.number == 0), None)

    @property
    def last_reason(self) -> str:
        """Why the last trial that failed did so; empty if none did."""
        reasons = [trial.user_attrs.get(_REASON, "") for trial in self.study.get_trials(deepcopy=False)]
        return next(filter(None, reversed(reasons)), "")

    def begin_with(self, hyperparameters: Hyperparameters) -> None:
        """Have a new search try these first."""
        if not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(
                {range_.name: range_.nearest(getattr(hyperparameters, range_.name)) for range_ in self._ranges}
            )

    def run(
        self,
        trials: int,
        workers: list[Worker],
        another: Callable[[], Worker],
        watcher: Watcher,
        stop: Callable[[], bool],
    ) -> None:
        """Try until so many trials have ended, or until ``stop`` returns True: then break off those that train.

        ``another`` makes a worker in place of one that ended. Raises UserError if no training is possible.
        """
        idle = list(workers)
        busy: dict[Any, _Trial] = {}
        try:
            while not stop():
                while idle and self.tried + len(busy) < trials:
                    worker = idle.pop()
                    if not worker.alive:
                        worker = another()
                    busy[worker.connection] = self._start(worker, watcher)
                if not busy:
                    return
                for connection in wait(list(busy), _POLL_SECONDS):
                    if self._hear(busy[connection], watcher):
                        idle.append(busy.pop(connection).worker)
        finally:
            for worker in idle:
                worker.end()
            for trial in busy.values():
                trial.worker.end()
                watcher.trial_broken_off(trial.trial.number)
                self._break_off(trial.trial.number, trial.trial.params)
                shutil.rmtree(self._folder_of(trial.trial.number), ignore_errors=True)

    def _start(self, worker: Worker, watcher: Watcher) -> "_Trial":
        """The next settings, which a worker begins to train."""
        for _ in range(_MOST_IMPOSSIBLE):
            trial = self.study.ask({range_.name: _distribution(range_) for range_ in self._ranges})
            try:
                hp = replace(self._base, **trial.params)
            except UserError:  # such as no negative sample at all
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            worker.train(hp, self._folder_of(trial.number))
            watcher.trial_began(trial.number, hp)
            return _Trial(worker, trial, hp, time.monotonic())
        raise UserError("no training can have any of the settings that were drawn: widen a range")

    def _hear(self, running: "_Trial", watcher: Watcher) -> bool:
        """What a training reports next. Returns whether it is over. Raises UserError or AlgorithmError."""
        worker, trial, number = running.worker, running.trial, running.trial.number
        answer = worker.hear()
        if isinstance(answer, EpochSummary):
            running.epochs = answer.epoch + 1
            trial.report(measure(answer, self._objective), answer.epoch)
            watcher.epoch_done(number, answer)
            worker.go_on(running.epochs == running.hyperparameters.epochs or not trial.should_prune())
            return False
        tried = Tried(number, trial.params, running.epochs, time.monotonic() - running.began)
        folder = None
        if isinstance(answer, Trained):
            folder = self._folder_of(number)
            tried = replace(tried, objective=measure(answer.metrics, self._objective), epochs=answer.epochs)
            self.study.tell(trial, tried.objective)
            tried = replace(tried, best=self.best is not None and self.best.number == number)
        elif isinstance(answer, GivenUp):
            tried = replace(tried, reason="its validation is below the median of the others'")
            self.study.tell(trial, state=TrialState.PRUNED)
        elif isinstance(answer, Failed):
            tried = replace(tried, reason=answer.reason, failed=True)
            trial.set_user_attr(_REASON, answer.reason)
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            raise AlgorithmError(f"trial {number} with {trial.params}: {getattr(answer, 'trace', answer)}")
        watcher.trial_ended(tried, folder)
        self._keep_best()
        shutil.rmtree(self._folder_of(number), ignore_errors=True)
        return True

    def _break_off(self, number: int, values: dict[str, float]) -> None:
        """Do not count a trial, and have it be the next."""
        self.study.tell(number, state=TrialState.FAIL)
        if values:
            self.study.enqueue_trial(values)

    def _keep_best(self) -> None:
        """Put the model of the best trial in its place, if it is not there yet."""
        best = self.best
        if best and (source := self._folder_of(best.number)).exists():
            target = self._folder / MODEL
            if target.exists():
                shutil.rmtree(target)
            source.rename(target)

    def _folder_of(self, number: int) -> Path:
        """Where the model of a trial is at first."""
        return self._folder / f".trial-{number}"


@dataclass
class _Trial:
    """A training in progress."""

    worker: Worker
    trial: optuna.Trial
    hyperparameters: Hyperparameters
    began: float
    epochs: int = 0
    """Complete ones."""


def _distribution(range_: Range) -> optuna.distributions.BaseDistribution:
    if range_.whole:
        return optuna.distributions.IntDistribution(int(range_.low), int(range_.high), log=range_.logarithmic)
    return optuna.distributions.FloatDistribution(range_.low, range_.high, log=range_.logarithmic)
