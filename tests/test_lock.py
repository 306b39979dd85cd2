"""What the images install is what the package asks for, in the versions tested together. `make lock` writes it."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
CONTAINER = REPOSITORY / "container"
LOCK = (CONTAINER / "requirements.lock").read_text()


def versions(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, flags=re.MULTILINE))


def asked_for() -> list[Requirement]:
    """The requirements of setup.py, with those of the training toolkit, which the images have."""
    call = next(
        node
        for node in ast.walk(ast.parse((REPOSITORY / "setup.py").read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setup"
    )
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    extras = given["extras_require"]
    assert isinstance(extras, ast.Dict)
    toolkit = next(
        value
        for name, value in zip(extras.keys, extras.values, strict=True)
        if isinstance(name, ast.Constant) and name.value == "toolkit"
    )
    return [Requirement(text) for text in ast.literal_eval(given["install_requires"]) + ast.literal_eval(toolkit)]


CONSTRAINTS = versions((CONTAINER / "constraints.txt").read_text())
LOCKED = versions(LOCK)
LEFT_OUT = re.findall(r"^([\w-]+)$", (CONTAINER / "image" / "without.txt").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("requirement", asked_for(), ids=str)
def test_every_requirement_is_locked(requirement: Requirement) -> None:
    """Torch's hash depends on the index that it comes from, so its version alone is pinned."""
    version = {**LOCKED, "torch": CONSTRAINTS["torch"]}[requirement.name]
    assert requirement.specifier.contains(version)


def test_what_is_locked_is_what_is_tested() -> None:
    assert {name: CONSTRAINTS.get(name) for name in LOCKED} == LOCKED
    assert not set(LEFT_OUT) & set(LOCKED)


def test_every_package_has_its_hashes_and_no_index() -> None:
    entries = re.split(r"^(?=\w)", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) == len(LOCKED)
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n", entry), entry
