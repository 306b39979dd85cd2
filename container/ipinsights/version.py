"""The version of the package, as models and the command line report it."""

from importlib import metadata


def version() -> str:
    """What was installed; "unknown" for a copy of the package that nobody installed."""
    try:
        return metadata.version("ipinsights")
    except metadata.PackageNotFoundError:
        return "unknown"
