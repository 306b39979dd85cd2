"""The documents show what the code declares: python tests/test_docs.py writes the generated tables anew."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ipinsights.hyperparameters import Declaration, declarations
from ipinsights.sagemaker import settings
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "notebooks/*.md") for path in REPOSITORY.glob(pattern)
)
BEGIN, END = "<!-- {}: made by tests/test_docs.py -->\n", "<!-- end of {} -->\n"


def shown(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else value


def line(d: Declaration) -> str:
    default = "*required*" if d.default is None else shown(d.default)
    tuning = " to ".join(map(shown, d.tuning)) if d.tuning else ""
    tuning += ", logarithmic" if d.tuning and d.tuning[0] and d.logarithmic else ""
    range_ = " to ".join(map(shown, d.range)) if d.range else " or ".join(map(str, d.choices))
    return f"| `{d.name}` | {range_} | {default} | {tuning} | {d.help} |\n"


def hyperparameters() -> str:
    head = "| name | range | default | worth tuning in | what it does |\n|---|---|---|---|---|\n"
    return head + "".join(map(line, declarations()))


def metrics() -> str:
    entries = "".join(f'    {{"Name": "{name}", "Regex": r"{regex}"}},\n' for name, regex in METRIC_DEFINITIONS.items())
    return f"```python\nmetric_definitions = [\n{entries}]\n```\n"


def variables() -> str:
    lines = [f"| `{v.name}` | {v.default} | {v.help} |\n" for v in settings.declarations().values()]
    return "| environment variable | default | |\n|---|---|---|\n" + "".join(lines)


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "hyperparameters": ("docs/hyperparameters.md", hyperparameters),
    "metric definitions": ("docs/training.md", metrics),
    "environment variables": ("docs/serving.md", variables),
}
"""Generated part -> its document, and the function that generates it."""


def split(text: str, name: str) -> tuple[str, str, str]:
    before, _, rest = text.partition(BEGIN.format(name))
    current, _, after = rest.partition(END.format(name))
    return before, current, after


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """What a link can name in a document, as GitHub makes it from the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> list[str]:
    """The links of a document to files and headings that do not exist. Links to other sites are not followed."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if not re.match(r"\w+:", target):
            name, _, anchor = target.partition("#")
            file = path.parent / name if name else path
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(target)
    return broken


def missing_files(path: Path) -> list[str]:
    """The files of this repository that a document names in code spans and that do not exist.

    They are named from the repository, from the document's folder, from ``container/`` or from the package.
    """
    folders = (REPOSITORY, path.parent, REPOSITORY / "container", REPOSITORY / "container" / "ipinsights")
    named = re.findall(r"`([\w./-]+\.(?:py|md|cpp|h|sh|toml)|[\w.-]+/[\w./-]*/)`", prose(path))
    return [name for name in named if not any((folder / name).exists() for folder in folders)]


@pytest.mark.parametrize("name", PARTS)
def test_the_documents_show_what_is_declared(name: str) -> None:
    document, make = PARTS[name]
    assert split((REPOSITORY / document).read_text(), name)[1] == make(), "run: python tests/test_docs.py"


def test_the_documents_show_the_function_of_the_spark_example() -> None:
    example = (REPOSITORY / "notebooks" / "spark_scoring.py").read_text()
    function = example[example.index("@pandas_udf") : example.index("def main")]
    assert function in (REPOSITORY / "docs" / "serving.md").read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_a_document_names_exists(path: Path) -> None:
    assert not broken_links(path)
    assert not missing_files(path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_document_recommends_a_sort_that_reads_no_quotes(path: Path) -> None:
    assert "| sort" not in path.read_text()


def test_a_broken_link_and_a_missing_file_are_found(tmp_path: Path) -> None:
    document = tmp_path / "some.md"
    (tmp_path / "other.md").write_text("# One heading, and `code`\n")
    document.write_text(
        "[a](other.md) [b](other.md#one-heading-and-code) [c](https://x.org) [d](gone.md) [e](other.md#no) [f](#no)\n"
        "`other.md` `model/model.py` `gone.py` `tests/gone/` `tests/model/`\n```\n[g](gone.md) `gone.py`\n```\n"
    )
    assert broken_links(document) == ["gone.md", "other.md#no", "#no"]
    assert missing_files(document) == ["gone.py", "tests/gone/"]


if __name__ == "__main__":
    for name, (document, make) in PARTS.items():
        path = REPOSITORY / document
        before, _, after = split(path.read_text(), name)
        path.write_text(before + BEGIN.format(name) + make() + END.format(name) + after)
