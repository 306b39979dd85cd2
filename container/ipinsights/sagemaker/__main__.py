"""The image's entry point: ``IMAGE train`` or ``IMAGE serve``."""

import sys

USAGE = "usage: docker run IMAGE {train|serve}\n"


def main() -> None:
    """Run the role that the first argument names."""
    if sys.argv[1:] == ["train"]:
        from ipinsights.sagemaker import job

        job.main()
    elif sys.argv[1:] == ["serve"]:
        from ipinsights.sagemaker import server

        server.main()
    else:
        sys.stderr.write(USAGE)
        sys.exit(2)


if __name__ == "__main__":
    main()
