"""Two pictures of a search, each an HTML file that needs no network: how it went, and which settings mattered."""

from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

HISTORY, IMPORTANCE = "history.html", "importance.html"
_LEAST = 3
"""Complete trials without which importance means nothing."""
_INK, _GREY = "#1b1b1b", "#8a8a8a"


def draw(study: optuna.Study, folder: Path, objective: str) -> list[Path]:
    """Write the pictures that there are enough trials for, and return their paths."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    name = f"validation {objective}"
    written = []
    if complete:
        figure = optuna.visualization.plot_optimization_history(study, target_name=name)
        figure.update_traces(marker_color=_GREY, selector={"mode": "markers"})
        figure.update_traces(line_color=_INK, name="the best so far", selector={"mode": "lines"})
        figure.update_xaxes(tickformat=",d")
        area = "mean of two areas under ROC curves" if objective == "mean" else "area under the ROC curve"
        written.append(_write(figure, folder / HISTORY, "How the search went", "trial", area))
    if len(complete) >= _LEAST and len({trial.value for trial in complete}) > 1:
        figure = optuna.visualization.plot_param_importances(study, target_name=name)
        figure.update_traces(marker_color=_GREY)
        title = f"Which settings mattered for {name}"
        written.append(_write(figure, folder / IMPORTANCE, title, "share of the importance", ""))
    return written


def _write(figure: Any, path: Path, title: str, x: str, y: str) -> Path:
    figure.update_layout(
        title=title,
        xaxis_title=x,
        yaxis_title=y,
        template="plotly_white",
        font_size=14,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "right", "x": 1.0},
        margin={"l": 20, "r": 20},
    )
    figure.update_yaxes(automargin=True)
    figure.write_html(path, include_plotlyjs=True, config={"displaylogo": False, "responsive": True})
    return path
