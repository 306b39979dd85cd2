"""The README's table of hyperparameters is made from the declarations: python tests/test_readme.py writes it anew."""

from pathlib import Path

from ipinsights.hyperparameters import Declaration, declarations

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- hyperparameters: made by tests/test_readme.py -->\n", "<!-- end of hyperparameters -->\n"


def number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def line(d: Declaration) -> str:
    default = "*required*" if d.default is None else number(d.default)
    tuning = f"{number(d.tuning[0])} to {number(d.tuning[1])}" if d.tuning else ""
    return f"| `{d.name}` | {number(d.low)} to {number(d.high)} | {default} | {tuning} | {d.help} |\n"


def table() -> str:
    head = "| name | range | default | worth tuning in | what it does |\n|---|---|---|---|---|\n"
    return head + "".join(map(line, declarations()))


def split(text: str) -> tuple[str, str, str]:
    before, _, rest = text.partition(BEGIN)
    current, _, after = rest.partition(END)
    return before, current, after


def test_the_readme_tells_every_hyperparameter() -> None:
    assert split(README.read_text())[1] == table(), "run: python tests/test_readme.py"


if __name__ == "__main__":
    before, _, after = split(README.read_text())
    README.write_text(before + BEGIN + table() + END + after)
