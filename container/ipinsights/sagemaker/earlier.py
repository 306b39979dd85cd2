"""The ``model`` channel: an earlier artifact that training continues from, as model.tar.gz or unpacked."""

import tarfile
import zlib
from pathlib import Path

from ipinsights.errors import UserError, refusal
from ipinsights.model import artifact
from ipinsights.model.model import Model

_PIECE = 1 << 20


def load(channel: Path, scratch: Path) -> Model:
    """Load the one model in the channel's folder; what is packed is unpacked into ``scratch``. Raises UserError."""
    archives = sorted(path for path in channel.rglob("*") if path.name.endswith(artifact.ARCHIVES))
    for number, archive in enumerate(archives):
        try:
            with tarfile.open(archive) as file:
                file.extractall(scratch / str(number), filter="data")
                while file.fileobj and file.fileobj.read(_PIECE):  # gzip's checksum stands behind the archive's end
                    pass
        except PermissionError as error:
            raise refusal("unpack", archive, error) from error
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise UserError(f"cannot unpack {archive}: {error}") from error
    manifests = [*channel.rglob(artifact.MANIFEST), *scratch.rglob(artifact.MANIFEST)]
    if len(manifests) != 1:
        found = "none" if not manifests else f"{len(manifests)} of them"
        raise UserError(
            f"channel 'model' must contain one model, as model.tar.gz or unpacked ({artifact.MANIFEST} and "
            f"{artifact.TENSORS}); {channel} contains {found}"
        )
    try:
        return artifact.load(manifests[0].parent)
    except UserError as error:
        raise UserError(f"channel 'model' ({', '.join(map(str, archives)) or channel}): {error}") from error
