"""The header and what Python makes of it; and a library that was compiled from something else."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipinsights import native
from ipinsights.native import interface

FOLDER = Path(native.__file__).parent
HEADER = re.sub(r"//.*", "", (FOLDER / "native.h").read_text())

VALUES = {
    "int": ctypes.c_int,
    "bool": ctypes.c_bool,
    "float": ctypes.c_float,
    "int64_t": ctypes.c_int64,
    "uint32_t": ctypes.c_uint32,
    "Rate": interface.Rate,
    "void": None,
}
POINTERS: dict[str, Any] = {
    "bool": interface.FLAGS,
    "uint8_t": interface.U8,
    "int32_t": interface.I32,
    "uint32_t": interface.U32,
    "int64_t": interface.I64,
    "uint64_t": interface.U64,
    "float": interface.F32,
    "double": interface.F64,
    "char": ctypes.c_char_p,
    "void": ctypes.c_void_p,
    "Step": ctypes.c_void_p,
}
STRUCTS = ("Tables", "Shape", "Parameters", "Batch", "Rate", "Update")


def ctype(text: str) -> Any:
    """What ctypes calls a type of the header."""
    name, pointer = re.fullmatch(r"(?:const )?(\w+)(\*?)", text.strip()).groups()  # type: ignore[union-attr]  # or fail
    if not pointer:
        return VALUES[name]
    return ctypes.POINTER(getattr(interface, name)) if name in STRUCTS else POINTERS[name]


def test_every_function_is_declared_as_the_header_has_it() -> None:
    found = re.findall(r"^([\w*]+) ipinsights_(\w+)\(([^)]*)\)(?: noexcept)?;", HEADER, re.MULTILINE)
    declared = {
        name: (ctype(result), [ctype(p.rpartition(" ")[0]) for p in parameters.split(",") if p.strip()])
        for result, name, parameters in found
    }
    assert declared == interface.FUNCTIONS


@pytest.mark.parametrize("name", STRUCTS)
def test_every_struct_has_the_headers_fields(name: str) -> None:
    body = re.search(rf"struct {name} {{(.*?)}};", HEADER, re.DOTALL)
    assert body
    fields = [line.strip(" ;").rpartition(" ") for line in body[1].strip().splitlines()]
    expected = [(field, ctypes.c_void_p if "*" in kind else ctype(kind)) for kind, _, field in fields]
    assert list(getattr(interface, name)._fields_) == expected


def test_an_array_of_another_type_or_with_gaps_is_an_error() -> None:
    good = np.zeros(4, np.uint32)
    pointer = interface.U32.from_param(good)
    assert isinstance(pointer, ctypes.c_void_p)
    assert pointer.value == good.ctypes.data
    for wrong in (good.astype(np.int32), good[::2]):
        with pytest.raises(TypeError, match="an array of uint32 without gaps is needed"):
            interface.U32.from_param(wrong)


def compiled(folder: Path, *options: str) -> Path:
    """A library that has what `native.load` asks first."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    source, library = folder / "library.cpp", folder / "library.so"
    source.write_text(
        'extern "C" int ipinsights_supported() { return 1; }\n'
        "#ifdef SOURCES\n"
        'extern "C" unsigned ipinsights_sources() { return SOURCES; }\n'
        "#endif\n"
    )
    command = [compiler, "-shared", "-fPIC", *options, str(source), "-o", str(library)]
    subprocess.run(command, check=True, timeout=60)
    return library


@pytest.mark.parametrize("options", [[], ["-DSOURCES=0"], ["-DSOURCES=7u"]])
def test_a_library_from_other_sources_is_not_used(options: list[str], tmp_path: Path) -> None:
    """The first was compiled before libraries told their sources."""
    reason = "the native kernel was built from other sources: install again (pip install, or make)"
    assert native.load(compiled(tmp_path, *options)) == (None, reason)


def test_a_change_of_any_source_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = native.sources()
    for path in [*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")]:
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    assert native.sources() == before
    with (tmp_path / "scoring.cpp").open("a") as file:
        file.write("\n")
    assert native.sources() != before


def test_what_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    missing, reason = native.load(tmp_path / native.LIBRARY)
    assert missing is None
    assert "the native kernel was not compiled at installation" in reason
    (tmp_path / native.LIBRARY).write_text("no library")
    assert "cannot be loaded" in native.load(tmp_path / native.LIBRARY)[1]
