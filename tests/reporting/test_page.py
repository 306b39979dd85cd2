"""The page as a browser, a person and a program see it."""

import dataclasses
import html.parser
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects
import pyarrow as pa
import pytest

from conftest import Traffic, to_events
from ipinsights.alerts.listing import find
from ipinsights.data.addresses import IPV4
from ipinsights.data.records import Records
from ipinsights.evaluation.judgement import judge
from ipinsights.evaluation.log_ins import LogIns
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.model import Model
from ipinsights.model.scoring import Scorer
from ipinsights.reporting import page
from ipinsights.reporting.page import Contents
from ipinsights.reporting.parts import Plot, Section
from ipinsights.training.fit import fit
from reporting.browser import visit

pytestmark = pytest.mark.slow

HOSTILE = (
    "<script>window.ran = 1</script>",
    "</script><script>window.ran = 2</script>",
    "<img src=x onerror='window.ran = 3'>",
    '"><svg onload=window.ran=4>',
    "<!--",
    "&lt;b&gt; \u2028 {{ 7 * 7 }}",
)
"""Names that somebody chose who wants more than to log in."""
TIME = np.datetime64("2026-01-04T04:31")
ALERTS = [
    {
        "entity": HOSTILE[0],
        "network": "198.51.100.0/24",
        "count": 1234,
        "first": TIME,
        "last": TIME + np.timedelta64(70, "m"),
        "score": -18.321,
        "percentile": 0.0004,
        "known": True,
        "reason": f"first log-in from AS10796, {HOSTILE[2]}; 3 of 4,120 accounts have used this /16",
    },
    {"entity": "new", "known": False, "score": None, "reason": "new account"},
]


@pytest.fixture(scope="module")
def contents(traffic: Traffic) -> Contents:
    """Of a small model that knows hostile names, and of log-ins of three days with some strangers."""
    names = dict(zip(traffic.train.entities.unique().to_pylist(), HOSTILE, strict=False))

    def renamed(pairs: Records) -> Records:
        return Records(pa.array([names.get(name, name) for name in pairs.entities.to_pylist()]), pairs.addresses)

    train, normal = renamed(traffic.train), renamed(traffic.normal)
    normal = Records.concat([normal, Records(pa.array(["</script>new"] * 30), normal.addresses[:30])])
    model = fit(to_events(train, 200), Hyperparameters(num_entity_vectors=200, vector_dim=16, epochs=2))
    seconds = np.linspace(0, 3 * 86400, len(normal)).astype("timedelta64[s]")
    log_ins = LogIns(dataclasses.replace(normal, times=np.datetime64("2026-01-02", "s") + seconds))
    scorer = Scorer(model)
    judgement = judge(scorer, log_ins, attacks=traffic.attacks, train=train.hashed(), resamples=20)
    manifest = {
        "ipinsights_version": "1.2.3",
        "data": {
            "events": 12345,
            "busiest_address": "192.0.2.1",
            "unknown_prefix_share": 0.25,
            "doubts": ["<b>Hm.</b>"],
        },
    }
    return Contents(scorer, model, manifest, log_ins, judgement, ALERTS)


@pytest.fixture(scope="module")
def text(contents: Contents) -> str:
    return page.render(page.report(contents, "Log-in report"))


def test_the_page_opens_and_the_threshold_moves(text: str, contents: Contents) -> None:
    script = """
    const read = () => ({
      shown: document.getElementById("slider-shown").textContent,
      false: document.getElementById("slider-overall-1").textContent,
      caught: [...document.querySelectorAll("#slider-caught tbody tr")].map(
        (row) => [...row.cells].map((cell) => cell.textContent)),
      line: document.getElementById("plot-sweep").layout.shapes[0].x0,
    });
    const before = read();
    const slider = document.getElementById("slider");
    slider.value = slider.min;
    slider.dispatchEvent(new window.Event("input"));
    return {
      before, after: read(), value: slider.getAttribute("aria-valuetext"),
      log_ins: document.querySelector(".headline dd").textContent,
      drawn: [...document.querySelectorAll(".plot")].map((plot) => plot.querySelectorAll(".scatterlayer path").length),
      ran: window.ran ?? null, images: document.querySelectorAll("img").length,
      loaded: window.performance.getEntriesByType("resource").map((entry) => entry.name),
      names: [...document.querySelectorAll("#list tbody th")].map((cell) => cell.textContent),
    };"""
    visited = visit(text, script)
    found, judgement = visited.found, contents.judgement
    assert found["log_ins"] == "2,030"
    assert found["before"]["shown"] == "0.00"
    assert found["before"]["false"] == str(judgement.false_alarms)
    assert found["before"]["line"] == 0
    recalls = [row[2].removesuffix("\u202f%") for row in found["before"]["caught"]]
    for recall, verdict in zip(recalls, judgement.by_model, strict=True):
        assert float(recall) == pytest.approx(100 * verdict.detection.recall, abs=0.06)
    assert found["after"]["line"] == judgement.thresholds[0]
    assert found["after"]["shown"] == found["value"] == f"\u2212{-judgement.thresholds[0]:.2f}"
    assert found["after"]["false"] in ("0", "1", "2", "3")
    assert found["after"]["caught"] != found["before"]["caught"]
    assert len(found["drawn"]) == 11  # the sweep, the scores, two for each of three kinds, calibration, two maps
    assert all(lines > 3 for lines in found["drawn"])
    assert found["ran"] is None
    assert found["images"] == 0
    assert found["loaded"] == visited.requests == []
    assert found["names"] == [HOSTILE[0], "new"]


def test_a_request_would_be_noticed() -> None:
    visited = visit('<img src="http://elsewhere.test/pixel.png"><p>1</p>', "return document.images.length")
    assert visited.found == 1
    assert visited.requests == ["http://elsewhere.test/pixel.png"]


def test_the_policy_stops_what_escaping_would_miss(text: str) -> None:
    """As if a name had come into the page as it is."""
    attack = "<script>window.ran = 1</script><img src='http://elsewhere.test/x' onerror='window.ran = 2'></main>"
    visited = visit(text.replace("</main>", attack), "return window.ran ?? null")
    assert visited.found is None
    assert visited.requests == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(text: str, width: int) -> None:
    script = """return {
      page: document.documentElement.scrollWidth,
      plots: [...document.querySelectorAll(".plot svg")].map((plot) => plot.getBoundingClientRect().right),
    };"""
    found = visit(text, script, width).found
    assert found["page"] <= width
    assert all(0 < right <= width for right in found["plots"])


class Outline(html.parser.HTMLParser):
    """The elements of a page in order, with their attributes, and the text of headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def test_the_page_can_be_read_aloud(text: str) -> None:
    outline = Outline(text)
    assert outline.all("html")[0]["lang"] == "en"
    assert len(outline.all("title")) == len(outline.all("main")) == len(outline.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch(r"h\d", tag)]
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in (attributes for _, attributes in outline.elements):
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert name not in attributes or attributes[name] in ids
        if (attributes.get("href") or "").startswith("#"):
            assert str(attributes["href"])[1:] in ids
    images = [attributes for attributes in outline.all("div") if attributes.get("role") == "img"]
    assert len(images) == len(outline.all("figure")) == len(outline.all("figcaption")) == 11
    assert all(attributes["aria-label"] and attributes["aria-describedby"] for attributes in images)
    assert len(outline.all("details")) == 11  # each plot in numbers
    assert len(outline.all("table")) == len(outline.all("caption"))
    assert all(attributes["scope"] in ("col", "row") for attributes in outline.all("th"))


def test_one_file_holds_all(text: str) -> None:
    outline = Outline(text)
    assert [attributes for attributes in outline.all("script", "img", "link", "iframe") if attributes.get("src")] == []
    assert [attributes["href"] for attributes in outline.all("link")] == ["data:,"]
    assert len(outline.all("script")) == 3
    assert len(text.encode()) < 8_000_000
    assert "default-src 'none'" in text
    for name in HOSTILE[:4]:
        assert name not in text
    assert "&lt;b&gt;Hm.&lt;/b&gt;" in text


def plots(sections: list[Section]) -> list[Plot]:
    return [
        plot for section in sections for plot in [*section.plots, *([section.slider.plot] if section.slider else [])]
    ]


def test_plotly_knows_every_figure_and_a_print_tells_lines_apart(contents: Contents) -> None:
    for plot in plots(page.report(contents, "").sections):
        figure = plotly.graph_objects.Figure(plot.figure)  # which looks at each name and value
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text
        lines = [trace for trace in plot.figure["data"] if "line" in trace]
        styles = [(trace["line"]["dash"], trace.get("marker", {}).get("symbol")) for trace in lines]
        assert len(set(styles)) == len(styles)
        markers = [trace["marker"]["symbol"] for trace in plot.figure["data"] if "marker" in trace]
        assert len(set(markers)) == len(markers)
        for trace in plot.figure["data"]:
            assert len(trace["x"]) == len(trace["y"]) <= page.MAP_POINTS


def test_a_text_in_a_plot_is_no_markup(contents: Contents) -> None:
    (accounts,) = [plot for plot in plots(page.report(contents, "").sections) if plot.name == "plot-account"]
    texts = [text for trace in accounts.figure["data"] for text in trace["text"]]
    assert any("&lt;script&gt;" in text for text in texts)
    assert not any("<" in text.replace("<br>", "") for text in texts)


def test_tables_say_what_was_measured(contents: Contents) -> None:
    sections = {section.name: section for section in page.report(contents, "").sections}
    known, strangers = sections["list"].tables
    assert known.rows[0][1:7] == [
        "198.51.100.0/24",
        "2026-01-04 04:31 to 05:41",
        "1,234",
        "\u221218.32",
        "0.040\u202f%",
        ALERTS[0]["reason"],
    ]
    assert strangers.rows == [["new", "\u2013", "\u2013", "\u2013", "\u2013", "\u2013", "new account"]]
    (found,) = sections["unusual"].tables
    scores = contents.scorer.score(contents.log_ins.pairs)[:2000]
    for row in found.rows:
        if row[0] == "known" and row[2] != "too few to tell":
            # Thresholds are whole multiples of 1 / 32, shown with two digits.
            threshold = round(float(row[2].replace("\u2212", "-")) * 32) / 32
            assert int(row[3].replace(",", "")) == (scores < threshold).sum()
    (areas,) = sections["areas"].tables
    assert [row[:2] for row in areas.rows] == [[v.attacks, v.judge] for v in contents.judgement.verdicts]
    assert areas.rows[0][2].startswith(f"{contents.judgement.verdicts[0].areas.roc_auc:.4f} (")
    assert ["log-ins", "12,345"] in sections["data"].tables[0].rows
    assert sections["data"].points == ["<b>Hm.</b>"]


def test_what_is_missing_is_left_out_or_said(contents: Contents) -> None:
    without = dataclasses.replace(contents.model, calibration=None, counted=None)
    timeless = LogIns(dataclasses.replace(contents.log_ins.pairs, times=None))
    scorer = Scorer(without)
    judgement = judge(scorer, timeless, resamples=0)
    found = page.report(Contents(scorer, without, {}, timeless, judgement), "T")
    assert [section.name for section in found.sections] == ["unusual", "threshold", "scores", "areas", "map"]
    assert found.sections[0].lead == [
        "The model is not calibrated, so it cannot tell how unusual a score is. Train with a validation channel."
    ]
    assert found.subtitle == ""
    assert [figure.label for figure in found.headline][:3] == [
        "log-ins",
        "accounts that the model knows",
        "accounts never seen before",
    ]
    assert "left out: they need the training log-ins." in found.sections[3].lead[-1]
    assert found.sections[1].slider is not None
    assert found.sections[1].slider.steps[0]["overall"][2] == "\u2013"
    assert "<main" in page.render(found)


def test_the_list_of_alerts_is_rows_of_the_page(contents: Contents) -> None:
    alerts = find(contents.model, [contents.log_ins.pairs], budget=5)
    rows = page.rows_of(alerts)
    assert len(rows) == len(alerts) > 3
    assert [row["reason"] for row in rows] == [alert.reason for alert in alerts]
    timeless = [Records(contents.log_ins.pairs.entities, contents.log_ins.pairs.addresses)]
    assert {row["first"] for row in page.rows_of(find(contents.model, timeless, budget=5))} == {None}
    (listed,) = [
        section
        for section in page.report(dataclasses.replace(contents, alerts=rows), "").sections
        if section.name == "list"
    ]
    assert [row[0] for table in listed.tables for row in table.rows] == [alert.entity for alert in alerts]


def test_accounts_of_which_it_is_open_whether_they_are_known_are_not_called_new(contents: Contents) -> None:
    rows = [{**ALERTS[0], "known": None}]
    (table,) = page.report(dataclasses.replace(contents, alerts=rows), "").sections[0].tables
    assert table.caption.startswith("Accounts that the model knows")


def test_a_page_repeats(contents: Contents, text: str, tmp_path: Path) -> None:
    page.write(tmp_path / "page.html", contents, "Log-in report")
    assert (tmp_path / "page.html").read_text() == text


def test_data_in_the_page_is_json(text: str, contents: Contents) -> None:
    match = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    data: dict[str, Any] = json.loads(match[1])
    assert len(data["slider"]["steps"]) == len(contents.judgement.thresholds)
    assert not re.search(r"[<>&\u2028]", match[1])


def test_an_untrained_model_has_a_page(contents: Contents) -> None:
    """It says nothing, but somebody has accepted it."""
    blank = Model.blank(IPV4, num_entity_vectors=10, dim=4, blocks=0)
    scorer = Scorer(blank)
    found = page.report(
        Contents(scorer, blank, {}, contents.log_ins, judge(scorer, contents.log_ins, resamples=5)), "T"
    )
    assert [section.name for section in found.sections] == ["unusual", "threshold", "scores", "areas"]
    assert "<main" in page.render(found)
