"""The page about the validation channel that a job leaves in /opt/ml/output/data, beside its model.

It is what ``ipinsights report`` makes, with the baselines where the training channel is small enough to be read again.
The model is saved before, so a page that cannot be made costs the job nothing but a line in the log.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ipinsights.data.formats import CSV
from ipinsights.data.sources import Source
from ipinsights.errors import UserError, refusals
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer
from ipinsights.sagemaker.configuration import Configuration
from ipinsights.sagemaker.paths import Paths

MOST = 1_000_000
"""Log-ins of which a page is made at most: with more the job would take memory and minutes that nobody asked for."""
SWITCH = "IPINSIGHTS_REPORT"
"""The environment variable that tells a job to make no page."""

logger = logging.getLogger("ipinsights")


def write(paths: Paths, job: Configuration, trained: int, validated: int) -> None:
    """Write the page of a job that has saved its model, or say in the log why there is none."""
    if job.validation is None or os.environ.get(SWITCH, "").lower() == "off":
        return
    files, reason = _files("validation", job.validation, job, validated)
    if reason:
        logger.info("There is no page about the validation channel: %s. `ipinsights report` makes one", reason)
        return
    train, why_not = _files("train", job.train, job, trained)
    try:
        _write(paths, job.hyperparameters.seed, files, None if why_not else train)
    except (UserError, OSError, MemoryError) as error:
        logger.warning("There is no page about the validation channel: %s", str(error) or "too little memory")
    except Exception:  # hours of training are not lost for a page
        logger.exception("There is no page about the validation channel, by a fault of the program. The model is saved")


def _files(name: str, sources: Sequence[Source], job: Configuration, events: int) -> tuple[list[Path], str]:
    """The files of a channel, and why no page is made of them, or ""."""
    files = [source for source in sources if isinstance(source, Path)]
    reason = ""
    if len(files) < len(sources):
        reason = "it came through a pipe, which cannot be read twice"
    elif name in job.sharded:
        reason = "this host has only some of its files"
    elif job.content_types.get(name, CSV) != CSV:
        reason = f"it is not {CSV}"
    elif events > MOST:
        reason = f"it has {events:,} log-ins, more than {MOST:,}"
    return files, reason


def _write(paths: Paths, seed: int, validation: Sequence[Path], train: Sequence[Path] | None) -> None:
    from ipinsights.alerts.listing import BUDGET, find  # what follows takes seconds to import
    from ipinsights.evaluation import log_ins
    from ipinsights.evaluation.judgement import judge
    from ipinsights.reporting import page

    model, manifest = artifact.read(paths.model)
    scorer, family = Scorer(model), model.family
    read = log_ins.read(validation, family, skip=True)  # the job has reported malformed rows
    judgement = judge(
        scorer,
        read,
        # Where all accounts are new, it is about them.
        everyone=not scorer.knows_hashed(read.pairs.hashed().digests).any(),
        networks=model.vocabulary.networks,
        train=None if train is None else log_ins.read_training(train, family, skip=True),
        seed=seed,
    )
    listed = page.rows_of(find(model, [read.pairs], budget=BUDGET))
    with refusals("write", paths.report):
        paths.report.parent.mkdir(parents=True, exist_ok=True)
        page.write(
            paths.report, page.Contents(scorer, model, manifest, read, judgement, alerts=listed), "Validation report"
        )
    logger.info("Wrote a page about the validation channel to %s", paths.report)
