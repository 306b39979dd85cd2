"""Parts of the README are made from the declarations: python tests/test_readme.py writes them anew."""

from pathlib import Path

import pytest

from ipinsights.hyperparameters import Declaration, declarations
from ipinsights.sagemaker import settings
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- {}: made by tests/test_readme.py -->\n", "<!-- end of {} -->\n"


def shown(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else value


def line(d: Declaration) -> str:
    default = "*required*" if d.default is None else shown(d.default)
    tuning = " to ".join(map(shown, d.tuning)) if d.tuning else ""
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


PARTS = {"hyperparameters": hyperparameters, "metric definitions": metrics, "environment variables": variables}


def split(text: str, name: str) -> tuple[str, str, str]:
    before, _, rest = text.partition(BEGIN.format(name))
    current, _, after = rest.partition(END.format(name))
    return before, current, after


@pytest.mark.parametrize("name", PARTS)
def test_the_readme_tells_what_is_declared(name: str) -> None:
    assert split(README.read_text(), name)[1] == PARTS[name](), "run: python tests/test_readme.py"


def test_the_readme_shows_the_function_of_the_spark_example() -> None:
    example = (README.parent / "notebooks" / "spark_scoring.py").read_text()
    function = example[example.index("@pandas_udf") : example.index("def main")]
    assert function in README.read_text()


if __name__ == "__main__":
    for name, make in PARTS.items():
        before, _, after = split(README.read_text(), name)
        README.write_text(before + BEGIN.format(name) + make() + END.format(name) + after)
