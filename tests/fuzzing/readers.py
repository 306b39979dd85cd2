"""Compiles `readers.cpp`: the native library's readers, with sanitizers, under libFuzzer or under `guided.cpp`."""

import os
import shutil
import subprocess
from pathlib import Path

from ipinsights import native

HERE, NATIVE = Path(__file__).parent, Path(native.__file__).parent
SOURCES = ("reader.cpp", "scoring.cpp")
SANITIZERS = "-fsanitize=address,undefined"
ENVIRONMENT = {"ASAN_OPTIONS": "handle_abort=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
SEEDS = [
    b"ca,1.2.3.4\nb,255.255.255.255 \xe2\x82\xac\r\n\xc3\xa9,0.0.0.0,2026-01-02T03:04:05Z",
    b'j{"instances": [{"features": ["a","1.2.3.4"]}, {"data":{"features":{"values":["b","2.3.4.5"]}}}]}',
    b'l{"features": ["a\\ud83d\\ude00","1.2.3.4"], "k": [-1.5, {"q": null}]}\r\n["b", "1.2.3.4"]',
    b"t\x03\x07\x06\x011.2.3.45.6.7.8",
    b"4\x05\x03\x04\x11\x07\x01" + bytes(range(120)),
    b"6\x05\x03\x04\x11\x07\x01" + bytes(range(120)),
    b"a\x02aaaabbbbhello\nworld\r\n\n\xef\xbb\xbfmore",
    b"o\x02\x01\x01\x02\x03\x04abcdefghij\x01\x021,2",
]


def compiler() -> str | None:
    """The C++ compiler that fuzzes best of those installed."""
    return next(filter(shutil.which, ("clang++", "g++")), None)


def build(folder: Path) -> Path | None:
    """The program; None if there is no compiler with these sanitizers. Raises RuntimeError if it does not compile."""
    flags = ["-std=c++20", "-O1", "-g", "-fno-sanitize-recover=all", SANITIZERS]
    flags += ["-march=x86-64-v3"] if os.uname().machine == "x86_64" else []
    program = folder / "readers"
    sources = [str(NATIVE / source) for source in SOURCES]
    if shutil.which("clang++"):
        command = ["clang++", *flags, "-fsanitize=fuzzer", *sources, str(HERE / "readers.cpp"), "-o", str(program)]
        if not subprocess.run(command, check=False, capture_output=True, timeout=600).returncode:
            return program
    if not _sanitizes(folder):
        return None
    objects = []
    for source, special in [
        *((source, ["-fsanitize-coverage=trace-pc"]) for source in sources),
        *((str(HERE / source), ["-fno-sanitize=all"]) for source in ("readers.cpp", "guided.cpp")),
    ]:
        objects.append(str(folder / f"{Path(source).stem}.o"))
        command = ["g++", *flags, *special, "-c", source, "-o", objects[-1]]
        _run(command)
    _run(["g++", SANITIZERS, *objects, "-o", str(program)])
    return program


def _sanitizes(folder: Path) -> bool:
    """Whether g++ is there, with the sanitizers' libraries."""
    if not shutil.which("g++"):
        return False
    empty = folder / "empty.cpp"
    empty.write_text("int main() {}\n")
    command = ["g++", SANITIZERS, str(empty), "-o", str(empty.with_suffix(""))]
    return not subprocess.run(command, check=False, capture_output=True, timeout=600).returncode


def _run(command: list[str]) -> None:
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr[-4000:]}")
