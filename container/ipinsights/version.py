"""The version of the package, as models and the command line report it."""


def version() -> str:
    """What was installed; "unknown" for a copy of the package that nobody installed."""
    from importlib import metadata  # takes a twentieth of a second, in which a container would not heed signals

    try:
        return metadata.version("ipinsights")
    except metadata.PackageNotFoundError:
        return "unknown"
