"""The shell: the ``ipinsights`` command, one of its commands a file. Each calls one part of the package."""
