"""A training job, from /opt/ml/input to /opt/ml/model.

`train` serves two callers: the console script of the same name, and the sagemaker-training toolkit, which the image
installs and which is told of it by ``SAGEMAKER_TRAINING_MODULE=ipinsights.sagemaker.job:train``. The toolkit is an
extra: a machine without a C compiler cannot install it and trains all the same.
"""

import contextlib
import dataclasses
import errno
import importlib.util
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ipinsights import native
from ipinsights.data.addresses import FAMILIES
from ipinsights.data.entities import EntityIndex
from ipinsights.data.formats import CSV
from ipinsights.data.networks import Networks
from ipinsights.distributed.group import ALONE, Group, OtherHostFailed, OtherHostStopped
from ipinsights.errors import AlgorithmError, UserError, quote_data, refusal, refusals
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.machine import has_gpu, require_memory
from ipinsights.model import artifact
from ipinsights.model.model import Model
from ipinsights.model.shard import Shard
from ipinsights.sagemaker import channels, configuration, earlier, page, processes, reporting, stopping
from ipinsights.sagemaker.paths import Paths
from ipinsights.sagemaker.processes import Processes
from ipinsights.sagemaker.settings import quotes_data
from ipinsights.training.checkpoint import Checkpoints

FAILURE_LIMIT = 1024
"""Characters of a failure file that the platform shows."""

_LEFT_OUT = " ... "

_TOOLKIT, _TOOLKIT_TARGET = "sagemaker_training", "SAGEMAKER_TRAINING_MODULE"

logger = logging.getLogger("ipinsights")


def main() -> None:
    """The console script ``train``: under the toolkit where the image asks for it, else directly.

    The toolkit answers configuration that is missing or broken with a traceback, or, where it has no folder for its
    failure file, with exit code 0 and not a word. So it is given whole configuration only; the rest is ours to judge.
    It also makes folders of its own below /opt/ml, so a read-only one does without it.
    """
    paths = Paths.from_environment()
    wanted = os.environ.get(_TOOLKIT_TARGET) and importlib.util.find_spec(_TOOLKIT)
    writable = os.access(paths.base, os.W_OK) and _can_make(paths.failure.parent)
    if wanted and writable and configuration.is_complete(paths):
        from sagemaker_training import trainer  # importing it makes folders, so it is imported here alone

        trainer.train()
    else:
        train()


def _can_make(folder: Path) -> bool:
    """Make a folder that may be there already. Returns whether it is there now."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # then the job tells which folder it may not use, and why
        return False
    return True


def train(**connection: Any) -> None:
    """Run the job that the environment describes. A failure is written to the failure file and ends the process.

    ``connection`` are options of `distributed.ranks.connect`, where the job has several processes.
    """
    paths = Paths.from_environment()
    reporting.configure_logging()
    others = Processes()
    try:
        with refusals("remove", paths.failure):
            paths.failure.unlink(missing_ok=True)
        quote_data(quotes_data())
        hosts = configuration.hosts(paths)
        _spare_threads()
        connection["processes"] = number = _processes(paths)
        own: dict[str, Any] = {}
        if number > 1 and len(hosts.names) == 1:  # on a free port, as several such jobs may run on one machine
            own["server"] = socket.create_server(("127.0.0.1", 0))
            connection["port"] = own["server"].getsockname()[1]
        if number > 1:
            logger.info("This host has %d GPUs, so %d processes train on it", number, number)
            others.start(number - 1, further, connection)
    except Exception as error:
        others.end()
        _fail(paths, _verdict(error, paths))
    _take_part(paths, hosts, others, {**connection, **own})


def further(process: int, **connection: Any) -> None:
    """Take part in the job as a further process of a host, of this number."""
    paths = Paths.from_environment()
    reporting.configure_logging(first=False)
    quote_data(quotes_data())
    _take_part(paths, configuration.hosts(paths), Processes(), {"process": process, **connection})


def _processes(paths: Paths) -> int:
    """How many processes of this host are to train: one for each of its GPUs."""
    try:
        hp = configuration.hyperparameters(paths)
    except UserError:  # all hosts are to hear of it, so it is told when they have come together
        return 1
    if hp.device == "cpu" or not has_gpu():
        return 1
    from ipinsights.training import placement  # loads torch, which takes seconds

    return max(1, placement.gpus())


def _take_part(paths: Paths, hosts: configuration.Hosts, others: Processes, connection: dict[str, Any]) -> None:
    """Do one process's part of the job. ``others`` are those that are to end before it does."""
    group = ALONE
    first = not connection.get("process")
    try:
        try:
            if len(hosts.names) > 1 or connection["processes"] > 1:
                group = _join(hosts, paths, others, connection)
        except (stopping.Stopped, OtherHostStopped):
            logger.warning("The job was asked to stop while the hosts came together")
            others.end()
            if hosts.rank == 0 and first:
                job, base, checkpoints = _prepared(paths, ALONE, len(hosts.names))
                _stopped(paths, job.hyperparameters, base, checkpoints, ALONE)
            return
        run(paths, group, hosts.current)
        group.close()
        others.end()
    except OtherHostFailed as error:
        group.leave()
        others.end()
        _leave(f"This host ends because {error}" if first else "")
    except Exception as error:
        verdict = _verdict(error, paths)
        group.fail(verdict)
        others.end()
        _fail(paths, verdict)


def _spare_threads() -> None:
    """Set how many threads torch has, before anything loads it.

    Without the kernel a step is dozens of short parallel loops, whose threads wait for one another: a second core makes
    it 1.3 times as fast where both are ours alone, and a seventh as fast beside two busy processes.
    """
    if native.library() is None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def _join(hosts: configuration.Hosts, paths: Paths, others: Processes, connection: dict[str, Any]) -> Group:
    """Come together with all other processes. Raises AlgorithmError if one does not come.

    Raises `stopping.Stopped` if this process is asked to stop meanwhile, and `OtherHostStopped` if another one is.
    """
    first = not connection.get("process")
    together = False

    def waiting(late: Sequence[str]) -> None:
        logger.info("Waiting for %s", ", ".join(late))

    def lost(reason: str, told: bool) -> None:
        """Another one has failed, and says why in its own failure file, or it is gone, which nobody else can say."""
        if not told and not together and (hosts.rank or not first) and stopping.requested():
            others.end()
            os._exit(0)  # the leader was asked, too, and was faster
        if first and not told:
            _write_failure(paths, f"AlgorithmError: {reason}")
        others.end()
        _leave(f"This host ends because {reason}" if first else "")

    def check() -> None:
        stopping.check()
        others.check()
        processes.check()

    if len(hosts.names) > 1:
        logger.info(
            "Host %s is %d of %d: waiting for the others. Metrics are in the log of %s",
            hosts.current,
            hosts.rank + 1,
            len(hosts.names),
            hosts.names[0],
        )
    from ipinsights.distributed import ranks  # loads torch, which takes seconds

    group = ranks.connect(
        hosts.names,
        hosts.rank,
        lost,
        named_interface=hosts.interface if len(hosts.names) > 1 else None,
        waiting=waiting,
        check=check,
        **connection,
    )
    together = True
    if len(hosts.names) > 1:
        gpus = f", with {group.size} GPUs" if group.size > len(hosts.names) else ""
        logger.info("All %d hosts are there%s", len(hosts.names), gpus)
    return group


def _leave(message: str) -> NoReturn:
    """End this process at once, from any thread: an exchange with a host that is gone may never end.

    The message is empty where the first process of the host has it.
    """
    if message:
        with contextlib.suppress(OSError):
            logger.error("%s", message)
    os._exit(1)


def _verdict(error: Exception, paths: Paths) -> str:
    """Whose fault it is, and what to do."""
    if isinstance(error, UserError):
        return f"ClientError: {error}"
    if isinstance(error, AlgorithmError):
        return f"AlgorithmError: {error}"
    if isinstance(error, MemoryError):
        return "ClientError: the machine has too little memory for this job: use a larger instance"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return f"ClientError: {refusal('write to', error.filename or 'standard output', error)}"  # no other has no name
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" for {error.filename}" if error.filename else ""
        return f"ClientError: there is no space left on the disk{where}: use a larger volume"
    if isinstance(error, OSError) and isinstance(error.filename, str) and paths.base in Path(error.filename).parents:
        return f"ClientError: {refusal('use', error.filename, error)}"
    logger.error("Internal error", exc_info=error)
    return f"AlgorithmError: internal error, please report it: {error!r}"


def run(paths: Paths, group: Group, host: str) -> None:
    """Read, train and save, with the other hosts of the group. Raises UserError where the input is at fault."""
    started = time.time()
    error: Exception | None = None
    try:
        job, base, checkpoints = _prepared(paths, group, len(group.processes))
    except Exception as fault:
        error = fault
    group.agree(error)
    try:
        _train(paths, job, base, checkpoints, started, group, host)
    except stopping.Stopped:
        _stopped(paths, job.hyperparameters, base, checkpoints, group)
    except OtherHostFailed as other:
        if other.kind != stopping.Stopped.__name__:
            raise
        _stopped(paths, job.hyperparameters, base, checkpoints, group)
    group.agree(None)


def _prepared(
    paths: Paths, group: Group, hosts: int
) -> tuple[configuration.Configuration, Model | None, Checkpoints | None]:
    """What there is to do on so many hosts, the earlier model, and where checkpoints are."""
    job = configuration.read(paths, hosts)
    hp = job.hyperparameters
    hp.require(validated=job.validation is not None)
    _look_for_gpu(hp, group)
    table = 4 * (hp.num_entity_vectors + 1) * hp.vector_dim
    require_memory(table * group.beside // max(group.size, hosts))
    if group.leads:
        _require_writable(paths.model, "the model", table)
    checkpoints = None
    with refusals("look into", paths.checkpoints), contextlib.suppress(FileNotFoundError):
        paths.checkpoints.stat()
        _require_writable(paths.checkpoints, "checkpoints")
        checkpoints = Checkpoints(paths.checkpoints, job.source, group)
    base = earlier.load(job.model) if job.model else None
    if base:
        base.require(hp)
    return job, base, checkpoints


def _look_for_gpu(hp: Hyperparameters, group: Group) -> None:
    """Raise UserError if the job must have a GPU that it lacks, and warn of one that it will not use.

    It is known before the data is read, which may take hours of an expensive machine.
    """
    if hp.device == "gpu" or (hp.device == "auto" and has_gpu()):
        from ipinsights.training import placement  # loads torch, which takes seconds

        if hp.device == "gpu":
            placement.require_gpu(group)
        elif fault := placement.gpu_fault(group):
            logger.warning("This job trains on the CPU, because %s", fault)


def _stopped(
    paths: Paths, hp: Hyperparameters, base: Model | None, checkpoints: Checkpoints | None, group: Group
) -> None:
    """Save the best model that is known, as this job has learnt nothing. All hosts of a group must call it."""
    logger.warning("The job was asked to stop before training began")
    known = _of_checkpoint(hp, checkpoints, group) if checkpoints else None
    if not group.leads:
        if known:
            artifact.save(known, paths.model, {}, group)
        return
    model = known or _best_known(hp, base)
    training = {"events": model.events, "ended": "before_training"}
    facts = {"hyperparameters": dataclasses.asdict(hp), "training": training, "metrics": {}}
    _save(paths, model, facts, group)


def _require_writable(folder: Path, what: str, size: int = 0) -> None:
    """Raise UserError if a folder cannot be made, listed or written, or has less than ``size`` free bytes.

    Otherwise it would be found out when the job has trained, maybe for hours.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.listdir(folder)  # noqa: PTH208  # it is to be tried, not walked
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"tried")
            file.flush()
            os.fsync(file.fileno())
        disk = os.statvfs(folder)
    except OSError as error:
        raise refusal(f"write {what} to", folder, error) from error
    free = disk.f_bavail * disk.f_frsize
    if free < size and disk.f_blocks:  # some file systems tell nothing
        raise UserError(
            f"there is no space left on the disk to write {what} to {folder}: at least {size / 1e6:,.1f} MB are "
            f"needed, and {free / 1e6:,.1f} MB are free. Free some, or use a larger volume"
        )


def _train(
    paths: Paths,
    job: configuration.Configuration,
    base: Model | None,
    checkpoints: Checkpoints | None,
    started: float,
    group: Group,
    host: str,
) -> None:
    hp = job.hyperparameters
    reading = time.time()
    family = FAMILIES[hp.ip_version]
    index = base.index.copy() if base else EntityIndex(hp.num_entity_vectors)
    data = {
        name: channels.read(name, sources, index, hp, job.content_types.get(name, CSV), group, name in job.sharded)
        for name, sources in (("train", job.train), ("validation", job.validation or []))
    }
    networks = Networks.read(job.networks, family) if job.networks else None
    read = time.time()
    marks = group.total_here(sum(part.removed.marks for part in data.values()))
    logger.info(
        "Read %s training and %s validation events%s%s",
        *(f"{group.total_here(len(part)):,}" for part in data.values()),
        " here" * (len(group.processes) > 1),
        f", and removed {marks:,} byte order marks from the starts of lines" if marks else "",
    )
    logger.info(
        "%s entities have their own row in the entity table of %s rows", f"{index.owned:,}", f"{index.num_rows:,}"
    )
    if base and not base.vocabulary.events:
        logger.warning("The model in channel 'model' is untrained: training starts from scratch")
    elif base:
        logger.info(
            "Continuing from the model in channel 'model', trained on %s events: it knows %s entities, and %s are new",
            f"{base.vocabulary.events:,}",
            f"{base.index.owned:,}",
            f"{index.owned - base.index.owned:,}",
        )
    if index.sharing:
        logger.warning(
            "%s entities found no free row and share the row of another entity: raise num_entity_vectors, ideally to "
            "twice the number of entities. Until then an entity that training never saw gets the score of the row that "
            "it is hashed to.",
            f"{index.sharing:,}",
        )
    if networks is not None:
        logger.info("Read %s networks", f"{len(networks):,}")
    if job.validation is None:
        logger.info("Test data is not provided.")

    if group.any(stopping.requested()):
        raise stopping.Stopped
    events, validated = (group.total(len(part)) for part in data.values())
    report = reporting.TrainingReport(host, hp, events, validated, len(group.processes), group.size)
    if group.leads:
        report.initialized(started, (reading, read))
    validation = data["validation"] if job.validation is not None else None
    options: dict[str, Any] = {
        "networks": networks,
        "earlier": base,
        "checkpoints": checkpoints,
        "stop": stopping.requested,
    }
    if group.size > 1:
        from ipinsights.training.together import fit_together

        learnt: Model | Shard = fit_together(
            data["train"], hp, validation, group, report if group.leads else None, **options
        )
    else:
        logger.info("Loading torch, which can take several seconds")
        from ipinsights.training.fit import fit  # loads torch, which takes seconds and reads the setting above

        learnt = fit(data["train"], hp, validation, report, **options)
    saving = time.time()
    if not group.leads:
        artifact.save(learnt, paths.model, {}, group)
        logger.info("Sent this host's part of the model to %s, which saves it", group.hosts[0])
        return
    _save(paths, learnt, report.facts(events, saving - started), group)
    report.finished(saving)
    if not stopping.requested():  # the platform gives no more than two minutes then
        page.write(paths, job, events, validated)


def _of_checkpoint(hp: Hyperparameters, checkpoints: Checkpoints, group: Group) -> Shard | None:
    """The model of the newest checkpoint, if that is of this job: this host's part. All hosts get one or none."""
    from ipinsights.training import resharding

    try:
        found, _ = checkpoints.newest()
    except (UserError, OtherHostFailed) as error:  # on all hosts
        logger.warning("%s", error)
        return None
    own = found.parts.get(group.rank) if found else None
    other = group.any(own is not None and own.source != checkpoints.source)  # of other data
    shard = resharding.model(found, group, hp) if found and not other and found.made_with(hp) else None
    if shard and found:
        logger.warning(
            "The saved model is the one of the checkpoint after %s epochs. Without the data nothing can be counted: it "
            "scores by what it learnt alone, which is less exact. Its metrics are not known",
            found.facts["epoch"],
        )
    return shard


def _best_known(hp: Hyperparameters, base: Model | None) -> Model:
    """The model to save where there is no checkpoint either."""
    if base:
        logger.warning("The saved model is the unchanged model of channel 'model'")
        return base
    return Model.blank(FAMILIES[hp.ip_version], hp.num_entity_vectors, hp.vector_dim, hp.num_ip_encoder_layers)


def _save(paths: Paths, model: Model | Shard, facts: dict[str, dict[str, Any]], group: Group = ALONE) -> None:
    """Save a model, or one of which each host has a part, with its facts.

    Raises UserError where an untrained one would replace a model.
    """
    if model.untrained:
        if (paths.model / artifact.MANIFEST).exists():
            raise UserError(
                f"the job was stopped before it learnt anything. The model in {paths.model} is an earlier one, and it "
                "was left as it is"
            )
        logger.warning("The saved model is untrained: it scores every pair 0")
    try:
        described = artifact.save(model, paths.model, facts, group)
    except OSError as error:
        raise refusal("write the model to", paths.model, error) from error
    if "history" in described:
        reporting.history_kept(described["history"], FAMILIES[described["vocabulary"]["ip_version"]].width)
    logger.info("Saved the model to %s", paths.model)


def _fail(paths: Paths, message: str) -> NoReturn:
    """Write the failure file and leave with a non-zero exit code."""
    message = reporting.defused(message)
    try:
        logger.error("%s", message)
    except OSError:  # it may be the log itself that cannot be written; nor could Python, which tries again as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _write_failure(paths, message)
    toolkit_errors = sys.modules.get(f"{_TOOLKIT}.errors")
    if toolkit_errors is None:
        sys.exit(1)
    # The toolkit turns SystemExit into success, and this into exit code 1 without a traceback.
    raise toolkit_errors.ClientError(message)


def _write_failure(paths: Paths, message: str) -> None:
    try:
        paths.failure.parent.mkdir(parents=True, exist_ok=True)
        paths.failure.write_text(_shortened(message), errors="backslashreplace")
    except OSError as error:
        logger.error("Cannot write %s: %s", paths.failure, error.strerror)  # noqa: TRY400  # one cause is enough


def _shortened(message: str) -> str:
    """A message as the platform can show it: of a long one the beginning and the end, which has the advice."""
    half = (FAILURE_LIMIT - len(_LEFT_OUT)) // 2
    return message if len(message) <= FAILURE_LIMIT else message[:half] + _LEFT_OUT + message[-half:]
