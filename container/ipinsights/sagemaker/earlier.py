"""The ``model`` channel: an earlier artifact that training continues from, as model.tar.gz or unpacked."""

import tempfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from ipinsights.data.archive import extract
from ipinsights.data.events import find_files
from ipinsights.errors import UserError
from ipinsights.model import artifact
from ipinsights.model.model import Model


def load(channel: Path) -> Model:
    """Load the one model in the channel's folder; what is packed is unpacked for as long as that takes.

    Raises UserError.
    """
    files = find_files(channel)
    models = {path.parent: channel for path in files if path.name == artifact.MANIFEST}
    with ExitStack() as unpacked:
        for archive in (path for path in files if path.name.endswith(artifact.ARCHIVES)):
            folder = Path(unpacked.enter_context(_scratch(archive)))
            extract(archive, (artifact.MANIFEST, artifact.TENSORS), folder)
            if (folder / artifact.MANIFEST).exists():
                models[folder] = archive
        if len(models) != 1:
            found = "none" if not models else f"{len(models)} of them"
            raise UserError(
                f"channel 'model' must contain one model, as model.tar.gz or unpacked ({artifact.MANIFEST} and "
                f"{artifact.TENSORS}); {channel} contains {found}"
            )
        [(folder, origin)] = models.items()
        try:
            return artifact.load(folder)
        except UserError as error:
            raise UserError(f"channel 'model' ({origin}): {error}") from error


def _scratch(archive: Path) -> AbstractContextManager[str]:
    """A folder for what an archive has. Raises UserError where none can be made."""
    try:
        return tempfile.TemporaryDirectory(prefix="ipinsights-")
    except FileNotFoundError as error:  # as `tempfile` says that it may write nowhere
        raise UserError(
            f"channel 'model' ({archive}) cannot be unpacked, since no folder for temporary files can be written to: "
            "give the container a writable /tmp, or set TMPDIR, or unpack the model first"
        ) from error
