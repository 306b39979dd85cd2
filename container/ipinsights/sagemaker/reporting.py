"""Every log line of a training job, and the regular expressions that read metrics back from them.

Lines and expressions are the built-in's (its tutorial's output, and the MetricDefinitions it registers), so dashboards
and tuners made for it keep working. A person at a terminal sees a progress bar besides.
"""

import dataclasses
import io
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ipinsights.data.networks import LABELS
from ipinsights.errors import one_line, quoted
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.calibration import RATES, Calibration
from ipinsights.model.profile import Profile
from ipinsights.training.progress import BatchProgress, Ended, Ending, EpochSummary, Plan, Quality, Record

METRIC_DEFINITIONS = {
    "train:binary_classification_accuracy": (
        r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train binary_classification_accuracy <score>=(\S+)"
    ),
    "train:binary_classification_cross_entropy": (
        r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train binary_classification_cross_entropy <loss>=(\S+)"
    ),
    "train:binary_classification_accuracy:epoch": (
        r"#quality_metric: host=\S+, epoch=\S+, train binary_classification_accuracy <score>=(\S+)"
    ),
    "train:binary_classification_cross_entropy:epoch": (
        r"#quality_metric: host=\S+, epoch=\S+, train binary_classification_cross_entropy <loss>=(\S+)"
    ),
    "validation:discriminator_auc": r"#quality_metric: host=\S+, epoch=\S+, validation discriminator_auc <score>=(\S+)",
    "validation:shuffled_auc": r"#quality_metric: host=\S+, epoch=\S+, validation shuffled_auc <score>=(\S+)",
    "validation:known_discriminator_auc": (
        r"#quality_metric: host=\S+, epoch=\S+, validation known_discriminator_auc <score>=(\S+)"
    ),
    "validation:known_shuffled_auc": (
        r"#quality_metric: host=\S+, epoch=\S+, validation known_shuffled_auc <score>=(\S+)"
    ),
    "train:progress": r"#progress_metric: host=\S+, completed (\S+) %",
    "train:throughput": r"#throughput_metric: host=\S+, train throughput=(\S+) records/second",
}
"""Metric name -> regular expression with the value as its group."""

_MARK = re.compile(r"#(?=\w+_metric:)")
"""What every one of these expressions begins with."""

_REASONS: dict[Ended, str] = {
    "early_stopping": "validation discriminator_auc no longer rises",
    "stopped": "it was asked to stop",
}
"""Why a training ended before its last epoch, to follow "because"."""

CHANCE = 0.6
"""A validation shuffled_auc below is too near to .5, which is guessing, for a model of who comes from where."""
FALL = 0.02
"""A fall of validation discriminator_auc since its best epoch that is more than a fluctuation."""
FEW_VALIDATED = 100
"""The metrics of fewer validation events fluctuate too much to judge a model by them."""

logger = logging.getLogger("ipinsights")


OWN = "ipinsights.sagemaker.channels"
"""The logger of what only one process of a host knows, of what it has read. What all would say, the first one says."""


def configure_logging(first: bool = True) -> None:
    """Send log lines to standard output in the built-in's form, above a progress bar if there is one.

    Unless this is the ``first`` process of its host, these are only its errors, and the lines of the logger `OWN`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file may have any name
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a process that ends at once leaves behind
    handler = _AboveProgressBar()
    handler.setFormatter(_Formatter("[%(asctime)s %(levelname)s %(thread)d] %(message)s", datefmt="%m/%d/%Y %H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if first else logging.ERROR)
    logging.getLogger(OWN).setLevel(logging.INFO)
    logger.propagate = False


def defused(text: str) -> str:
    """A text that no metric expression matches and that takes one line, whatever stands in the data that it quotes."""
    return _MARK.sub(r"\\x23", one_line(text))


class _Metric(str):
    """A line that an expression is to match. No other log line does."""


class _Formatter(logging.Formatter):
    """The one place that every log line passes."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the library's name
        line = super().formatMessage(record)
        return line if isinstance(record.msg, _Metric) else defused(line)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "\n".join(map(defused, super().formatException(ei).splitlines()))


class _AboveProgressBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_line(self.format(record))


def print_line(line: str) -> None:
    """Write a line as it stands to standard output, above a progress bar if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def progress_bar(total: int | None, unit: str, description: str, shown: bool = True) -> "tqdm[Any]":
    """A bar on standard error, silent where no person watches; without a total it only counts."""
    return tqdm(total=total, unit=unit, unit_scale=True, desc=description, disable=None if shown else True, leave=False)


def history_kept(history: Mapping[str, int], width: int) -> None:
    """How much a saved model keeps of its events, of addresses of so many bits, and what that takes.

    ``history`` is as the manifest has it.
    """
    if not history["pairs"]:
        logger.info("The model keeps no list of the addresses of each entity (hyperparameter history)")
        return
    logger.info(
        "The model keeps %s pairs of an entity and %s, each with its number of events: %.1f MB (hyperparameter "
        "history)",
        f"{history['pairs']:,}",
        "an address" if history["bits"] == width else f"a /{history['bits']}",
        history["bytes"] / 1e6,
    )


@dataclass(frozen=True)
class _Host:
    """Renders the lines that carry the host's name."""

    name: str

    def quality(
        self, epoch: int, metric: str, value: float, *, subset: str = "train", batch: int | None = None
    ) -> _Metric:
        kind = "loss" if metric.endswith("cross_entropy") else "score"
        where = f"epoch={epoch}," if batch is None else f"epoch={epoch}, batch={batch}"
        return _Metric(f"#quality_metric: host={self.name}, {where} {subset} {metric} <{kind}>={value}")

    def progress(self, percent: float) -> _Metric:
        return _Metric(f"#progress_metric: host={self.name}, completed {percent} % of epochs")

    def throughput(self, records_per_second: float) -> _Metric:
        return _Metric(f"#throughput_metric: host={self.name}, train throughput={records_per_second} records/second")

    def metrics(self, started: float, ended: float, values: dict[str, list[float]], **dimensions: Any) -> str:
        document = {
            "StartTime": started,
            "EndTime": ended,
            "Dimensions": {"Algorithm": "ipinsights", "Host": self.name, "Operation": "training", **dimensions},
            "Metrics": {
                name: {"sum": sum(v), "count": len(v), "min": min(v), "max": max(v)} for name, v in values.items()
            },
        }
        return f"#metrics {json.dumps(document)}\n"


class TrainingReport(Record):
    """Writes the lines of one job as training goes."""

    def __init__(
        self,
        host: str,
        hyperparameters: Hyperparameters,
        events: int,
        validation_events: int,
        hosts: int = 1,
        ranks: int = 1,
    ) -> None:
        """A job of so many ``ranks``, one on each of the ``hosts`` or more."""
        super().__init__(hyperparameters)
        self._host = _Host(host)
        self._hosts = hosts
        self._ranks = ranks
        self._epochs = hyperparameters.epochs
        self._events = events
        self._validation_events = validation_events
        self._started = self._epoch_started = time.time()
        self._setup = 0.0
        self._bar: tqdm[Any] | None = None
        self._seen = {"records": 0, "batches": 0}
        self._printed: EpochSummary | None = None
        self._validated = False
        self._best = 0.0, 0
        """The best discriminator_auc of this run, and its epoch."""

    def initialized(self, started: float, reading: tuple[float, float]) -> None:
        """The data is in memory. ``reading`` is when it began and ended, in Unix seconds."""
        self._started = started
        begin, end = reading
        self._metrics(
            started, end, {"initialize.time": [_ms(end - started)], "init_train_data_iter": [_ms(end - begin)]}
        )

    def training_planned(self, plan: Plan) -> None:
        """What the hyperparameters became, what the data and the vocabulary are, where training runs, what it takes."""
        hp, vocabulary, asked = plan.hyperparameters, plan.vocabulary, self.hyperparameters
        super().training_planned(plan)
        logger.info("Final configuration: %s", {name: str(value) for name, value in dataclasses.asdict(hp).items()})
        for name in ("mini_batch_size", "learning_rate"):
            value, default = getattr(hp, name), getattr(asked, name)
            if value != default:
                logger.info(
                    "%s is not set: training uses %g instead of the default %g, which gives too few or too small steps "
                    "for %s events",
                    name,
                    value,
                    default,
                    f"{self._events:,}",
                )
        self._describe(plan.profile)
        if plan.held_out:
            logger.info(
                "%s log-ins are kept apart from training, to calibrate the scores by them (held_out_share)",
                f"{plan.held_out:,}",
            )
            self._events -= plan.held_out
        if plan.unseen:
            logger.info(
                "%s validation events are of entities that training never saw; the metrics known_discriminator_auc and "
                "known_shuffled_auc leave them out",
                f"{plan.unseen:,}",
            )
        if not hp.shuffled_negative_sampling_rate:
            logger.warning(
                "shuffled_negative_sampling_rate is 0: the model learns which addresses are in use, but hardly which "
                "entity uses which address. validation discriminator_auc does not show this; look at validation "
                "shuffled_auc."
            )
        levels = [
            f"{n:,} of /{level} ({share:.0%} of the events)"
            for level, n, share in zip(vocabulary.levels, vocabulary.sizes, vocabulary.known_shares, strict=True)
        ]
        levels += [f"{len(label.values):,} of {kind}" for kind, label in zip(LABELS, vocabulary.labels, strict=False)]
        logger.info(
            "Known prefixes: %s; at least %d events each",
            ", ".join(levels),
            vocabulary.counts.min() if len(vocabulary.counts) else 2,
        )
        if plan.earlier:
            origins = vocabulary.origins(plan.earlier)
            kept = len(set(origins[vocabulary.depth :].tolist()) - set(range(plan.earlier.depth)))
            known = plan.earlier.num_rows - plan.earlier.depth
            logger.info(
                "The earlier model knew %s prefixes: this model keeps %s of them and adds %s",
                f"{known:,}",
                f"{kept:,}",
                f"{vocabulary.num_rows - vocabulary.depth - kept:,}",
            )
        logger.info(
            "Training on %s with %d thread%s; parameters and the largest step take %s MB",
            plan.device,
            plan.threads,
            "s" * (plan.threads > 1),
            f"{plan.memory / 1e6:,.0f}",
        )
        unit = "hosts" if self._ranks == self._hosts else "processes" if plan.device == "cpu" else "GPUs"
        if plan.ranks < self._ranks:
            logger.info(
                "%d of %d %s train: the data is too little, or too much of it is of one entity, to be divided among "
                "more. The others have read their share. As many %s as train would be as fast (training_hosts)",
                plan.ranks,
                self._ranks,
                unit,
                unit,
            )
        elif self._ranks > 1:
            logger.info("All %d %s train, each the entities that are at home there", self._ranks, unit)
        if plan.slower_because:
            logger.warning("Training is several times slower than it could be, because %s", plan.slower_because)
        self._epoch_started = time.time()
        self._setup = self._epoch_started - self._started

    def step_done(self, epoch: int, positives: int) -> None:
        """The progress bar."""
        if self._bar is None:
            self._bar = progress_bar(self._events, "events", f"epoch {epoch + 1} of {self._epochs}")
        self._bar.update(positives)

    def batches_done(self, progress: BatchProgress) -> None:
        """Speed so far, and the means so far."""
        if progress.batch:
            logger.info(
                "Epoch[%d] Batch [%d]\tSpeed: %.2f samples/sec\tbinary_classification_accuracy=%.6f"
                "\tbinary_classification_cross_entropy=%.6f",
                progress.epoch,
                progress.batch,
                progress.records_per_second,
                progress.accuracy,
                progress.cross_entropy,
            )
        self._quality(progress.epoch, progress.accuracy, progress.cross_entropy, progress.batch)

    def epoch_done(self, summary: EpochSummary) -> None:
        """The epoch's metrics, counters and throughput."""
        self._close_bar()
        ended, number = time.time(), summary.epoch + 1
        logger.info("Epoch[%d] Train-binary_classification_accuracy=%.6f", summary.epoch, summary.accuracy)
        logger.info("Epoch[%d] Train-binary_classification_cross_entropy=%.6f", summary.epoch, summary.cross_entropy)
        logger.info("Epoch[%d] Time cost=%.3f", summary.epoch, summary.seconds)
        self._quality(summary.epoch, summary.accuracy, summary.cross_entropy)
        self._validation(summary)
        if summary.discriminator_auc is not None and summary.discriminator_auc > self._best[0]:
            self._best = summary.discriminator_auc, summary.epoch
        self._metrics(
            self._epoch_started, ended, {"epochs": [self._epochs], "update.time": [_ms(ended - self._epoch_started)]}
        )
        logger.info(self._host.progress(round(100 * number / self._epochs, 2)))
        self._seen["records"] += summary.records
        self._seen["batches"] += summary.batches
        counters = {
            "Total Records Seen": self._seen["records"],
            "Total Batches Seen": self._seen["batches"],
            "Max Records Seen Between Resets": summary.records,
            "Max Batches Seen Between Resets": summary.batches,
            "Reset Count": number,
            "Number of Records Since Last Reset": summary.records,
            "Number of Batches Since Last Reset": summary.batches,
        }
        self._metrics(
            self._epoch_started,
            ended,
            {name: [value] for name, value in counters.items()},
            epoch=summary.epoch,
            Meta="training_data_iter",
        )
        logger.info(self._host.throughput(summary.records / summary.seconds))
        self._epoch_started = ended

    def resumed(self, epoch: int, steps: int, damaged: list[str]) -> None:
        """Where training resumes, and which checkpoints are damaged."""
        for reason in damaged:
            logger.warning("Skipped a damaged checkpoint: %s", reason)
        logger.info("Resuming from the checkpoint after %d epochs and %d steps of the next epoch", epoch, steps)

    def resharded(self, ranks: int) -> None:
        """One line."""
        logger.info(
            "The checkpoint was written by %d host%s: entities move to their new homes, and the rest of the epoch is "
            "drawn anew",
            ranks,
            "s" * (ranks > 1),
        )

    def uncounted(self) -> None:
        """One line."""
        logger.warning(
            "There was no time to write counting into the model: it scores by what it learnt alone, which is less exact"
        )

    def calibrated(self, calibration: Calibration) -> None:
        """How low ordinary log-ins score."""
        for of, sketch in (("known", calibration.known), ("new", calibration.new)):
            thresholds = [sketch.threshold(rate) for rate in RATES]
            told = [
                f"{found.rate:.2%} of them score below {found.score:.2f} "
                f"(the true share is {found.interval[0]:.3%} to {found.interval[1]:.3%})"
                for found in thresholds
                if found.score is not None
            ]
            untold = [f"{found.rate:.2%}" for found in thresholds if found.score is None]
            told += [f"too few to tell for {', '.join(untold)}"] if untold else []
            logger.info("Calibrated by %s log-ins of %s entities: %s", f"{len(sketch):,}", of, "; ".join(told))

    def checkpoint_written(self, where: str, seconds: float) -> None:
        """One line."""
        logger.info("Wrote the checkpoint %s in %.1f s", where, seconds)

    def checkpoint_failed(self, error: Exception) -> None:
        """The reason, and what follows."""
        logger.error(
            "Could not write a checkpoint (%s). Training continues, and a restarted job resumes from an older one",
            error,
        )

    def training_ended(self, ending: Ending) -> None:
        """Why it ended; the metrics of the saved model, unless they are the last ones printed; and what follows."""
        self._close_bar()
        super().training_ended(ending)
        if ending.ended != "all_epochs":
            logger.warning(
                "Training ended after %d of %d epochs and %d steps of the next epoch, because %s",
                ending.epochs,
                self._epochs,
                ending.steps,
                _REASONS[ending.ended],
            )
        saved = ending.saved
        if saved is not None and saved != self._printed:
            partly = ", which did not end" if ending.steps and saved.epoch == ending.epochs else ""
            logger.info("The saved model has the weights of epoch %d%s", saved.epoch, partly)
            self._validation(saved)
            if saved.discriminator_auc is None and self._validated:
                logger.warning(
                    "There was no time to validate the saved model: the last validation metrics are of another epoch"
                )
        if saved is not None and self._validation_events >= FEW_VALIDATED:
            self._doubts(saved)
        if ending.epochs or ending.steps:
            logger.info("Writing what was counted into the model, which can take longer than an epoch")

    def finished(self, saving_started: float) -> None:
        """The model is saved; ``saving_started`` is when that began, in Unix seconds."""
        ended = time.time()
        self._metrics(saving_started, ended, {"finalize.time": [_ms(ended - saving_started)]})
        self._metrics(ended, ended, {"setuptime": [_ms(self._setup)], "totaltime": [_ms(ended - self._started)]})

    def _describe(self, profile: Profile) -> None:
        """The facts about the data in a few lines, and a warning for each doubt."""
        logger.info(
            "Training data: %s events of %s entities and %s addresses, which form %s distinct pairs",
            *(f"{number:,}" for number in (profile.events, profile.entities, profile.addresses, profile.pairs)),
        )
        logger.info(
            "Training data: the busiest entity has %.1f%% of the events, the busiest address (%s) %.1f%%",
            100 * profile.busiest_entity_share,
            quoted(profile.busiest_address, "not shown"),
            100 * profile.busiest_address_share,
        )
        logger.info(
            "Training data: %.1f%% of the entities and %.1f%% of the pairs have only one event",
            100 * profile.one_event_entities_share,
            100 * profile.one_event_pairs_share,
        )
        logger.info(
            "Training data: %.1f%% of the events have private, loopback or reserved addresses, and %.1f%% have no "
            "known prefix",
            100 * profile.reserved_address_share,
            100 * profile.unknown_prefix_share,
        )
        for doubt in profile.doubts():
            logger.warning("%s", doubt)

    def _doubts(self, saved: EpochSummary) -> None:
        """Warnings for validation metrics of the saved model that make it doubtful."""
        hp = self.hyperparameters
        # Without shuffled negatives a low value is expected, and training began with a warning of it.
        if hp.shuffled_negative_sampling_rate and saved.shuffled_auc is not None and saved.shuffled_auc < CHANCE:
            logger.warning(
                "validation shuffled_auc is %.3f, and .5 is guessing: the model can hardly tell whose address is "
                "whose. Look whether several people share an entity, whether entities have the same names in both "
                "channels, and whether the addresses are those of the clients.",
                saved.shuffled_auc,
            )
        auc = saved.discriminator_auc
        if hp.saved_epoch == "last" and auc is not None and auc < self._best[0] - FALL:
            logger.warning(
                "validation discriminator_auc fell from %.3f in epoch %d to %.3f in epoch %d, whose weights are saved: "
                "set saved_epoch=best, or train for fewer epochs",
                *self._best,
                auc,
                saved.epoch,
            )

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _validation(self, summary: EpochSummary) -> None:
        self._printed = summary
        self._validated |= summary.discriminator_auc is not None
        for name in (field.name for field in dataclasses.fields(Quality)):
            value = getattr(summary, name)
            if value is not None:
                logger.info(self._host.quality(summary.epoch, name, value, subset="validation"))

    def _quality(self, epoch: int, accuracy: float, cross_entropy: float, batch: int | None = None) -> None:
        logger.info(self._host.quality(epoch, "binary_classification_accuracy", accuracy, batch=batch))
        logger.info(self._host.quality(epoch, "binary_classification_cross_entropy", cross_entropy, batch=batch))

    def _metrics(self, started: float, ended: float, values: dict[str, list[float]], **dimensions: Any) -> None:
        print_line(self._host.metrics(started, ended, values, **dimensions))


def _ms(seconds: float) -> float:
    return seconds * 1000
