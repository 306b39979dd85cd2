"""Removes from the image's packages what nothing in it imports: `python trim.py ENVIRONMENT`.

It runs in the build's first stage, so no layer of the image ever has what it removes. Licences stay.
"""

import shutil
import subprocess
import sys
from pathlib import Path

UNUSED = (
    # Torch: programs, headers and tests of C++, and what compiles against it.
    *("torch/bin/[!t]*", "torch/bin/test*", "torch/include", "torch/share", "torch/test", "torch/lib/*test*.so"),
    *("torch/lib/libbackend_with_compiler.so", "torch/lib/libshm_windows"),
    # Arrow: headers and sources, and the services that nobody asks for files.
    *("pyarrow/include", "pyarrow/src", "pyarrow/*.pyx", "pyarrow/*.pxi", "pyarrow/includes"),
    *("pyarrow/*flight*", "pyarrow/*_s3fs*", "pyarrow/libarrow_s3.so*", "pyarrow/*_cpp_tests*"),
    # Arrow: the same library under further names, which only a compiler asks for.
    *("pyarrow/libarrow_python.so", "pyarrow/libarrow_python.so.*.*"),
    # What notebooks show.
    *("plotly/labextension", "plotly/package_data/widgetbundle.js"),
    "numpy/f2py",
)
"""Patterns of paths below site-packages."""
TESTED = ("botocore", "networkx", "numpy", "pandas", "psutil", "pyarrow", "sympy")
"""Packages whose folders named ``tests`` hold tests; elsewhere such a folder may be part of the program."""
STRIPPED = ("torch/lib/libtorch_cpu.so", "torch/lib/libtorch_python.so", "pyarrow/*.so*")
"""Libraries with names of functions that only a debugger reads. (Those in numpy.libs do not load any more without.)"""


def main(environment: Path) -> None:
    """Remove what is unused, and print how much that was."""
    before = size(environment)
    shutil.rmtree(environment / "share")  # manual pages, and what notebooks show
    [packages] = environment.glob("lib/python3*/site-packages")
    for pattern in (*UNUSED, *(f"{name}/**/tests" for name in TESTED)):
        for path in list(packages.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    libraries = [path for pattern in STRIPPED for path in packages.glob(pattern)]
    subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)  # noqa: S603, S607  # of the build's stage
    print(f"Removed {(before - size(environment)) / 1e6:,.0f} of {before / 1e6:,.0f} MB")


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
