"""What the builds of the images run inside them: a check that nothing is missing, and the removal of what is unused."""

import runpy
import shutil
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import pytest
import torch

from ipinsights import native

IMAGE = Path(__file__).parents[1] / "container" / "image"
KERNEL = Path(native.__file__).with_name(native.LIBRARY)

needs_kernel = pytest.mark.skipif(not KERNEL.exists(), reason="the native kernel is not compiled here")


def program(name: str) -> dict[str, Any]:
    return runpy.run_path(str(IMAGE / name))


@needs_kernel
@pytest.mark.parametrize(
    ("kind", "cuda", "told"),
    [
        ("cpu", None, None),
        ("cpu", "13.0", "is a build for CUDA 13.0, .* with --build-arg TORCH_INDEX=URL"),
        ("gpu", "12.6", None),
        ("gpu", None, "is a build without CUDA: .* with --build-arg TORCH_INDEX=URL"),
    ],
)
def test_a_build_fails_with_the_wrong_build_of_torch(
    kind: str, cuda: str | None, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    check = program("check.py")["main"]
    if told is None:
        check(kind)
    else:
        with pytest.raises(SystemExit, match=told):
            check(kind)


@needs_kernel
def test_a_build_fails_without_its_kernel_or_with_that_of_other_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = program("check.py")["main"]
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(SystemExit, match="the C\\+\\+ compiler was missing or failed"):
        check("cpu")
    shutil.copy(KERNEL, tmp_path)
    monkeypatch.setattr(native, "sources", lambda: 1)
    with pytest.raises(SystemExit, match="was compiled from other sources"):
        check("cpu")


@needs_kernel
@pytest.mark.skipif(shutil.which("strip") is None, reason="there is no strip here")
def test_what_is_unused_is_removed_and_licences_stay(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    kept = ["torch/lib/libtorch_cpu.so", "torch/bin/torch_shm_manager", "torch/testing/__init__.py"]
    kept += ["torch-2.dist-info/licenses/LICENSE", "pandas/core/frame.py", "sagemaker_training/tests/data.py"]
    removed = ["torch/bin/protoc", "torch/include/ATen/ATen.h", "torch/lib/libjitbackend_test.so", "numpy/f2py/x.py"]
    removed += ["pandas/tests/test_api.py", "numpy/_core/tests/data/a.csv", "pyarrow/libarrow_flight.so.2600"]
    for name in kept + removed:
        path = packages / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(KERNEL, path) if path.suffix == ".so" else path.write_text("x")
    (tmp_path / "share" / "man").mkdir(parents=True)
    program("trim.py")["main"](tmp_path)
    assert sorted(str(path.relative_to(packages)) for path in packages.rglob("*") if path.is_file()) == sorted(kept)
    assert not (tmp_path / "share").exists()
    assert native.load(packages / kept[0])[0] is not None  # it can be used as before


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        (["License-Expression: MIT", "License: x", "Classifier: License :: OSI Approved :: BSD License"], "MIT"),
        (["License: x", "Classifier: License :: OSI Approved :: BSD License", "Classifier: A :: B"], "BSD License"),
        (["License: Apache 2", "Classifier: A :: B"], "Apache 2"),
        ([], "not declared; see NOTICES.txt"),
    ],
)
def test_a_licence_is_found_wherever_it_is_declared(lines: list[str], licence: str, tmp_path: Path) -> None:
    folder = tmp_path / "Some_Package-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.4", "Name: Some_Package", "Version: 1.0", *lines, ""])
    )
    (folder / "LICENSE").write_text("Whoever wants may copy it.\n")
    (folder / "RECORD").write_text("Some_Package-1.0.dist-info/LICENSE,,\n")
    bill, package = program("bill.py"), PathDistribution(folder)
    assert bill["python_package"](package) == {
        "type": "library",
        "bom-ref": "pkg:pypi/some-package@1.0",
        "name": "some-package",
        "version": "1.0",
        "purl": "pkg:pypi/some-package@1.0",
        "licenses": [{"license": {"name": licence}}],
    }
    text = bill["notice"](package)
    assert f"\nsome-package 1.0: {licence}\n" in text
    assert "LICENSE\n\nWhoever wants may copy it.\n" in text
