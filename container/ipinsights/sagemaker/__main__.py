"""The image's entry point, ``IMAGE train`` or ``IMAGE serve``, and the console scripts of those names."""

import sys

from ipinsights.sagemaker import stopping

USAGE = "usage: docker run IMAGE {train|serve}\n"


def train() -> None:
    """Run a training job."""
    stopping.watch()
    from ipinsights.sagemaker import job  # imports much, which takes a second

    try:
        job.main()
    finally:
        stopping.ignore()


def serve() -> None:
    """Serve the model."""
    from ipinsights.sagemaker import server

    server.main()


def main() -> None:
    """Run the role that the first argument names."""
    if sys.argv[1:] == ["train"]:
        train()
    elif sys.argv[1:] == ["serve"]:
        serve()
    else:
        sys.stderr.write(USAGE)
        sys.exit(2)


if __name__ == "__main__":
    main()
