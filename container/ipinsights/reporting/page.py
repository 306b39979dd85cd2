"""One HTML file, with plotly.js in it, that needs no network and that a person can read on a phone, in print, or aloud.

Whatever comes from data is escaped: by the template in HTML, and as JSON by escapes of <, > and &, so that no text ends
the script that it stands in. And the page's own policy (Content-Security-Policy) lets the browser run only the two
scripts that were written here, by their hashes, and load nothing.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import orjson
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ipinsights.alerts.listing import Alerts
from ipinsights.evaluation import embeddings
from ipinsights.evaluation.embeddings import Embeddings, Map, Method
from ipinsights.evaluation.judgement import Judgement
from ipinsights.evaluation.log_ins import LogIns
from ipinsights.model.model import Model
from ipinsights.model.scoring import Scorer
from ipinsights.reporting import comparisons, sections
from ipinsights.reporting.parts import Page, Plot, Section, minute
from ipinsights.reporting.sections import Alert

MAP_POINTS = 2000
"""Points of a map at most: more are no clearer, and make a large file."""

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


@dataclass(frozen=True)
class Contents:
    """What a report is made of."""

    scorer: Scorer
    model: Model
    manifest: Mapping[str, Any]
    log_ins: LogIns
    judgement: Judgement
    alerts: Sequence[Alert] | None = None
    """This morning's list; None: the page has no list."""


def write(path: Path, contents: Contents, title: str = "Log-in report") -> None:
    """Write a report as one HTML file of about 5 MB."""
    save(path, report(contents, title))


def report(contents: Contents, title: str) -> Page:
    """The report's parts."""
    scorer, log_ins, judgement = contents.scorer, contents.log_ins, contents.judgement
    found = [
        None if contents.alerts is None else sections.alerts(contents.alerts),
        sections.unusual(log_ins, scorer),
        comparisons.sweep(judgement),
        comparisons.distributions(judgement),
        comparisons.curves(judgement),
        sections.calibration(log_ins, scorer, scorer.calibration),
        sections.profile(contents.manifest),
        _maps(contents),
    ]
    when = "" if log_ins.span is None else f"{' to '.join(map(minute, log_ins.span))} (UTC)"
    return Page(
        title,
        when,
        sections.headline(log_ins, scorer, judgement),
        [section for section in found if section],
        f"Made by ipinsights from a model of release {contents.manifest.get('ipinsights_version', 'unknown')}, with "
        f"seed {judgement.seed}. This page is one file: it loads nothing from a network.",
    )


def rows_of(alerts: Alerts) -> list[Alert]:
    """A list of log-ins to look at, as `Contents` takes it."""
    return [
        {
            "entity": alert.entity,
            "network": alert.network,
            "count": alert.log_ins,
            "first": None if np.isnat(alert.first) else alert.first,
            "last": None if np.isnat(alert.last) else alert.last,
            "score": alert.score,
            "percentile": alert.percentile,
            "known": alert.known,
            "reason": alert.reason,
        }
        for alert in alerts
    ]


def save(path: Path, page: Page) -> None:
    """Write a page."""
    path.write_text(render(page), encoding="utf-8")


def render(page: Page) -> str:
    """A page as HTML."""
    plots = [plot for section in page.sections for plot in _plots(section)]
    slider = next((section.slider for section in page.sections if section.slider), None)
    data = {
        "figures": {plot.name: plot.figure for plot in plots},
        "slider": slider and {"plot": slider.plot.name, "steps": slider.steps},
    }
    scripts = [_plotly(), _asset("page.js")]
    return _template().render(
        page=page,
        style=Markup(_asset("page.css")),  # noqa: S704  # our own files
        scripts=[Markup(script) for script in scripts],  # noqa: S704
        hashes=" ".join(map(_hash, scripts)),
        data=Markup(orjson.dumps(data).decode().translate(_ESCAPES)),  # noqa: S704  # escaped for a script
    )


def _plots(section: Section) -> list[Plot]:
    return [*section.plots, *([section.slider.plot] if section.slider else [])]


def of_maps(sampled: Mapping[str, Embeddings], placed: Mapping[str, Map], how: Method) -> Page:
    """A page of maps alone, by what they are of."""
    section = sections.maps(sampled, placed, how)
    return Page("Map of embeddings", "", [], [section] if section else [], "Made by ipinsights. This page is one file.")


def _maps(contents: Contents) -> Section | None:
    """The accounts and the networks of the log-ins."""
    model, seed = contents.model, contents.judgement.seed
    names = contents.log_ins.pairs.entities.unique()
    sampled = {
        "account": embeddings.of_entities(model, names).of_known().sample(MAP_POINTS, seed),
        "network": embeddings.of_networks(model).sample(MAP_POINTS, seed),
    }
    return sections.maps(sampled, {noun: Map.of(those.vectors) for noun, those in sampled.items()}, "pca")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("page.html"))


@cache
def _plotly() -> str:
    return str(get_plotlyjs())


def _asset(name: str) -> str:
    return resources.files("ipinsights.reporting").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
