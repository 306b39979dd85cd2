"""The plots of a page, as plotly.js takes them: data and layout in plain dictionaries.

Every series has a line style or a marker of its own, so that a print in black and white can be read. Text that comes
from data is escaped, because plotly.js takes some HTML in it for markup.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ipinsights.evaluation.embeddings import UNKNOWN, Embeddings, Map, largest_groups
from ipinsights.evaluation.judgement import ATTACKS, COUNTING, MODEL, PREFIX, Judgement, Verdict
from ipinsights.evaluation.negatives import NEAR, OTHERS, RANDOM

INK, MUTED, RULE, ACCENT = "#1b2733", "#55616d", "#e3e8ec", "#17456e"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
REAL = "real log-ins"

_STYLES: Mapping[str, tuple[str, str, str]] = {
    REAL: (ACCENT, "solid", "circle"),
    MODEL: (ACCENT, "solid", "circle"),
    RANDOM: ("#b5532a", "dash", "square"),
    OTHERS: ("#2a7a68", "dot", "diamond"),
    NEAR: ("#74499c", "dashdot", "triangle-up"),
    ATTACKS: ("#8f6d12", "longdash", "x"),
    PREFIX: ("#b5532a", "dot", "square"),
    COUNTING: ("#2a7a68", "dash", "diamond"),
}
"""The colour, the dash and the marker of each series."""
_GROUPS = (
    (ACCENT, "circle"),
    ("#b5532a", "square"),
    ("#2a7a68", "diamond"),
    ("#74499c", "triangle-up"),
    ("#8f6d12", "cross"),
    ("#3b86c4", "star"),
)
_OTHER = ("#b3bcc4", "circle-open")
_BINS = 60
_SPAN = (0.002, 0.998)
_LEGEND, _AROUND = 52, 96
"""Pixels from the plot's lower edge to the legend, and of a figure's height beside the plot."""
_CURVE = 160
"""Points of a curve."""
_MARKERS = 10
"""About so many points of a line have a marker, so that lines can be told without colours."""


def layout(x: Mapping[str, Any], y: Mapping[str, Any], height: int = 360) -> dict[str, Any]:
    """The layout that all plots have in common, with the axes' own."""
    axis = {
        "gridcolor": RULE,
        "linecolor": MUTED,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": MUTED,
        "ticklen": 4,
        "fixedrange": True,  # or a finger that scrolls the page would move the plot
        "automargin": True,
    }
    title = {"font": {"size": 13, "color": MUTED}, "standoff": 8}
    return {
        "xaxis": {**axis, "showline": True, **x, "title": {"text": x["title"], **title}},
        "yaxis": {**axis, **y, "title": {"text": y["title"], **title}},
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 12, "b": 48},
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hoverlabel": {"font": {"family": FONT, "size": 13}, "bgcolor": "#ffffff", "bordercolor": MUTED},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": -_LEGEND / (height - _AROUND),
            "yanchor": "top",
            "font": {"size": 13},
        },
        "hovermode": "closest",
        "dragmode": False,
    }


def distributions(judgement: Judgement) -> dict[str, Any]:
    """How real log-ins and attacks of each kind score."""
    scores = {REAL: judgement.scores, **{v.attacks: v.ranking.attacks for v in judgement.by_model}}
    every = np.concatenate(list(scores.values()))
    low, high = np.quantile(every, _SPAN).tolist()
    edges = np.linspace(min(low, judgement.threshold), max(high, judgement.threshold, low + 1e-3), _BINS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    traces = []
    for name, own in scores.items():
        shares = np.histogram(np.clip(own, edges[0], edges[-1]), edges)[0] / len(own) * 100
        line = _line(name, middle, shares, f"{name}<br>%{{y:.2f}} % score about %{{x:.2f}}")
        traces.append(line | ({"fill": "tozeroy", "fillcolor": "rgba(23,69,110,0.10)"} if name == REAL else {}))
    figure = layout(
        {"title": "score (higher is more usual)"}, {"title": "share of the pairs (%)", "rangemode": "tozero"}
    )
    figure |= _mark(judgement.threshold)
    return {"data": traces, "layout": figure}


def sweep(judgement: Judgement) -> dict[str, Any]:
    """What each threshold catches, and what it costs."""
    thresholds = judgement.thresholds
    traces = []
    for verdict in judgement.by_model:
        recalls = [100 * row["recall"] for row in judgement.sweep(verdict)]
        name = f"caught: {verdict.attacks}"
        traces.append(_line(name, thresholds, recalls, f"{name}<br>%{{y:.2f}} % below %{{x:.2f}}", of=verdict.attacks))
    false = [100 * row["false_positive_rate"] for row in judgement.sweep(judgement.by_model[0])]
    name = "flagged: real log-ins"
    traces.insert(0, _line(name, thresholds, false, f"{name}<br>%{{y:.2f}} % below %{{x:.2f}}", of=REAL))
    figure = layout({"title": "threshold (score)"}, {"title": "share (%)", "range": [-2, 102]})
    figure |= _mark(judgement.threshold)
    return {"data": traces, "layout": figure}


def roc(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The ROC curves of all judges on one kind of attacks; the axis of false alarms is logarithmic."""
    most = len(verdicts[0].ranking.log_ins)
    low = max(1 / most, 1e-5)
    rates = np.geomspace(low, 1, _CURVE)
    traces = [
        _line(
            verdict.judge,
            100 * rates,
            100 * verdict.ranking.roc(rates),
            f"{verdict.judge}<br>%{{y:.1f}} % caught at %{{x:.3g}} % of false alarms",
        )
        for verdict in verdicts
    ]
    figure = layout(
        {"title": "real log-ins flagged (%), logarithmic", "type": "log", **_decades(100 * low, 100)},
        {"title": "attacks caught (%)", "range": [-2, 102]},
        320,
    )
    return {"data": traces, "layout": figure}


def precision_recall(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The precision-recall curves of all judges on one kind of attacks."""
    recalls = np.linspace(1 / _CURVE, 1, _CURVE)
    precisions = [verdict.ranking.precision(recalls) for verdict in verdicts]
    lowest = 10 * math.floor(10 * min(own.min() for own in precisions))
    traces = [
        _line(
            verdict.judge,
            100 * recalls,
            100 * own,
            f"{verdict.judge}<br>precision %{{y:.1f}} % where %{{x:.0f}} % are caught",
        )
        for verdict, own in zip(verdicts, precisions, strict=True)
    ]
    figure = layout(
        {"title": "attacks caught (%)", "range": [-2, 102]},
        {"title": "precision (%)", "range": [lowest - 1, 101]},
        320,
    )
    return {"data": traces, "layout": figure}


def calibration(kinds: Mapping[str, Sequence[tuple[float, float]]], lowest: float) -> dict[str, Any]:
    """The share promised below each threshold against the share observed, by kind of account."""
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "as promised",
            "x": [100 * lowest, 100],
            "y": [100 * lowest, 100],
            "line": {"color": MUTED, "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    for (name, points), of in zip(kinds.items(), (MODEL, PREFIX), strict=False):
        promised, observed = (100 * np.array(column) for column in zip(*points, strict=True))
        line = _line(name, promised, observed, f"{name}<br>promised %{{x:.3g}} %, observed %{{y:.3g}} %", of=of)
        traces.append(line | {"mode": "lines+markers", "marker": {**line["marker"], "maxdisplayed": 0}})
    axes = {"type": "log", **_decades(100 * lowest, 100)}
    figure = layout(
        {"title": "promised share (%), logarithmic", **axes},
        {"title": "observed share (%), logarithmic", **axes},
    )
    return {"data": traces, "layout": figure}


def embedding_map(embeddings: Embeddings, found: Map) -> dict[str, Any]:
    """Points of a map, with a colour and a marker for each of the largest groups."""
    groups = np.array(embeddings.groups, dtype=object)
    largest = largest_groups(embeddings.groups, len(_GROUPS))
    styles = [*zip(largest, _GROUPS, strict=False)]
    rest = ~np.isin(groups.astype(str), largest)
    traces = []
    if rest.any():
        others = "other or not known" if (groups[rest] != UNKNOWN).any() else UNKNOWN
        traces.append(_points(others, embeddings, found, rest, _OTHER))
    traces += [_points(name, embeddings, found, groups == name, style) for name, style in styles]
    first, second = found.shares or (None, None)
    axes = [
        {
            "title": title + ("" if share is None else f" ({100 * share:.0f} % of the variance)"),
            "showticklabels": False,
            "ticks": "",
        }
        for title, share in (("first axis, no unit", first), ("second axis, no unit", second))
    ]
    figure = layout(axes[0], axes[1], 460)
    return {"data": traces, "layout": figure}


def _points(
    name: str, embeddings: Embeddings, found: Map, chosen: npt.NDArray[np.bool_], style: tuple[str, str]
) -> dict[str, Any]:
    places = np.flatnonzero(chosen).tolist()
    colour, symbol = style
    texts = [f"{html.escape(embeddings.names[place])}<br>{html.escape(embeddings.groups[place])}" for place in places]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": html.escape(name),
        "x": _rounded(found.points[places, 0], 4),
        "y": _rounded(found.points[places, 1], 4),
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": colour,
            "symbol": symbol,
            "size": 7,
            "opacity": 0.8,
            "line": {"width": 0.5, "color": "#fff"},
        }
        | ({"line": {"width": 1, "color": colour}} if symbol.endswith("open") else {}),
    }


def _line(
    name: str, x: Sequence[float] | npt.NDArray[Any], y: Sequence[float] | npt.NDArray[Any], says: str, of: str = ""
) -> dict[str, Any]:
    """A line in the style of a series, which is named by ``of`` unless its own name is that."""
    colour, dash, symbol = _STYLES[of or name]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": _rounded(x, 6),
        "y": _rounded(y, 4),
        "line": {"color": colour, "dash": dash, "width": 2.5 if dash == "solid" else 2},
        "marker": {"color": colour, "symbol": symbol, "size": 7, "maxdisplayed": _MARKERS},
        "hovertemplate": says + "<extra></extra>",
    }


def _mark(threshold: float) -> dict[str, Any]:
    """A line at the threshold."""
    line = {"color": INK, "width": 1.5, "dash": "solid"}
    shape = {
        "type": "line",
        "x0": threshold,
        "x1": threshold,
        "xref": "x",
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": line,
    }
    return {"shapes": [shape]}


def _decades(low: float, high: float) -> dict[str, Any]:
    """The range of a logarithmic axis, and its ticks as plain numbers."""
    first, last = int(np.floor(np.log10(low) + 1e-9)), int(np.ceil(np.log10(high) - 1e-9))
    values = [10.0**power for power in range(first, last + 1)]
    return {
        "range": [float(np.log10(low)) - 0.05, float(np.log10(high)) + 0.05],
        "tickvals": values,
        "ticktext": [f"{value:g}" for value in values],
    }


def _rounded(values: Sequence[float] | npt.NDArray[Any], digits: int) -> list[float]:
    rounded: list[float] = np.round(np.asarray(values, dtype=np.float64), digits).tolist()
    return rounded
