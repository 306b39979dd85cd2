"""The ``model`` channel: an earlier artifact that training continues from, as model.tar.gz or unpacked."""

from pathlib import Path

from ipinsights.data.archive import extract
from ipinsights.data.events import find_files
from ipinsights.errors import UserError
from ipinsights.model import artifact
from ipinsights.model.model import Model


def load(channel: Path, scratch: Path) -> Model:
    """Load the one model in the channel's folder; what is packed is unpacked into ``scratch``. Raises UserError."""
    files = find_files(channel)
    models = {path.parent: channel for path in files if path.name == artifact.MANIFEST}
    for number, archive in enumerate(path for path in files if path.name.endswith(artifact.ARCHIVES)):
        folder = scratch / str(number)
        folder.mkdir()
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
