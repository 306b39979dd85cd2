"""The main job from end to end, on this machine: make log-ins, train, serve, score, look.

    make demo

Ten thousand simulated users as in the AWS tutorial, trained with its hyperparameters through the very entry points that
SageMaker uses (``train`` and ``serve`` as processes, on a folder that plays /opt/ml), then scored over HTTP: later
log-ins against attacks from random networks. Where the real data is present, the same on real Tor relays. And last the
walk of the shell: from an access log to the list of log-ins to look at, and a page that opens in the browser.
Everything lands in local_test/work.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import requests
from matplotlib.figure import Figure

from benchmarks import datasets
from benchmarks.servers import terminate
from ipinsights import metrics
from ipinsights.data import addresses

WORK = Path(__file__).parent / "work"
USERS, WALK_USERS = 10_000, 500
_FEWER_LINES = {"batch_metrics_publish_interval": 5000}
"""Five times the default."""
TUTORIAL = {"num_entity_vectors": 20_000, **datasets.TUTORIAL_HYPERPARAMETERS, **_FEWER_LINES}
TOR = {"num_entity_vectors": 40_000, **datasets.TOR_HYPERPARAMETERS, **_FEWER_LINES}
PUBLISHED = metrics.Detection(0.0, flagged=103_491, true_positives=98_453, attacks=100_000, log_ins=100_000)
"""The built-in's result at threshold 0 in the tutorial notebook's stored output, on its own draw of such traffic."""
PAYLOAD_BYTES = 5_000_000
"""Below the 6 MB that an endpoint takes."""


def main() -> None:
    """Run all parts."""
    started = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)
    simulated()
    if datasets.TOR.exists():
        real()
    else:
        print(f"\nThe real data is not at {datasets.FOLDER} (see IPINSIGHTS_DATA), so part 4 is left out.")
    walk()
    print(f"\nDone in {time.monotonic() - started:.0f} s; everything is in {WORK}")


def simulated() -> None:
    """The tutorial's experiment."""
    heading(f"1. Simulate {USERS:,} users, ten days")
    traffic, tree = WORK / "traffic", WORK / "tutorial"
    ranges = ["--ranges", str(datasets.RANGES)] if datasets.RANGES.exists() else []
    run(["ipinsights", "simulate", "--users", str(USERS), "--out", str(traffic), *ranges])

    heading("2. Train, as a SageMaker training job would")
    for channel in ("train", "validation"):
        shutil.copytree(traffic / channel, tree / "input" / "data" / channel)
    train(tree, TUTORIAL)

    heading("3. Serve, and score 100,000 later log-ins and as many attacks over HTTP")
    with serving(tree) as url:
        log_ins, attacks = (post(url, (traffic / "test" / name).read_text()) for name in ("normal.csv", "attacks.csv"))

    print(f"ROC AUC {metrics.auc(log_ins, attacks):.4f}. Flagged where -dot_product is above the threshold:\n")
    print(threshold_table(log_ins, attacks, thresholds=(-5, 0, 5, 10)))
    print(f"{'built-in, published':>20}{row(PUBLISHED)}")
    picture(WORK / "tutorial.png", "Simulated log-ins", {"later log-ins": log_ins, "attacks, random networks": attacks})


def real() -> None:
    """The same on Tor relays that moved to an address never used before."""
    heading("4. Real address changes: Tor relays")
    tree, split = WORK / "tor", datasets.tor()
    folder = tree / "input" / "data" / "train"
    folder.mkdir(parents=True)
    split.train[["fingerprint", "ip"]].to_csv(folder / "events.csv", header=False, index=False)
    print(
        f"{len(split.train):,} events of {split.train.fingerprint.nunique():,} relays; {len(split.test):,} later moves"
    )
    train(tree, TOR)

    rng = np.random.default_rng(0)
    drawn = rng.integers(1 << 24, 224 << 24, size=len(split.test), dtype=np.uint32)
    kinds = {
        "moves to a new address": split.test.ip.tolist(),
        "random addresses": addresses.render(drawn),
        "others' addresses": rng.choice(split.train.ip, size=len(split.test)).tolist(),
    }
    with serving(tree) as url:
        scores = {kind: post(url, to_csv(split.test.fingerprint.tolist(), ips)) for kind, ips in kinds.items()}
    moves, random, others = scores.values()
    print(f"ROC AUC {metrics.auc(moves, random):.4f} against random addresses, "
          f"{metrics.auc(moves, others):.4f} against others' addresses\n")  # fmt: skip
    print(threshold_table(moves, np.concatenate([random, others]), thresholds=(-5, 0, 5)))
    picture(WORK / "tor.png", "Real Tor relays", scores)


def walk() -> None:
    """From an access log to the list of log-ins to look at."""
    heading(f"5. From an access log of {WALK_USERS} users to this morning's list")
    traffic, log_ins, model, report = (WORK / name for name in ("walk", "log-ins", "model", "report.html"))
    run(["ipinsights", "simulate", "--users", str(WALK_USERS), "--log", "--out", str(traffic)])
    wanted = ["--resource", "GET /login_success", "--status", "200", "--split", "7d:1d:1d"]
    run(["ipinsights", "prepare", str(traffic / "access.log"), *wanted, "--out", str(log_ins)])
    train_, validation, latest = (str(log_ins / name) for name in ("train", "validation", "latest"))
    run(["ipinsights", "train", train_, "--validation", validation, "--model", str(model)])
    run(["ipinsights", "alerts", latest, "--model", str(model), "--budget", "10"])
    run(["ipinsights", "report", latest, "--model", str(model), "--train", train_, "--out", str(report)])
    if sys.stdout.isatty():
        webbrowser.open(report.as_uri())


def heading(text: str) -> None:
    """Announce a step."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(command: Sequence[str], **environment: str) -> None:
    """Run a command to its end, showing what it prints."""
    started = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, **environment}, timeout=3600)
    print(f"({command[0]} took {time.monotonic() - started:.0f} s)", flush=True)


def train(tree: Path, hyperparameters: dict[str, Any]) -> None:
    """Configure a tree that plays /opt/ml and run ``train`` on it."""
    config = tree / "input" / "config"
    config.mkdir(parents=True)
    strings = {name: str(value) for name, value in hyperparameters.items()}  # as the platform sends them
    (config / "hyperparameters.json").write_text(json.dumps(strings))
    run(["train"], SAGEMAKER_BASE_DIR=str(tree))


@contextlib.contextmanager
def serving(tree: Path) -> Iterator[str]:
    """Run ``serve`` on a tree; gives its URL once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(tree), "SAGEMAKER_BIND_TO_PORT": str(port)}
    started = time.monotonic()
    server = subprocess.Popen(["serve"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(requests.ConnectionError, requests.Timeout):
                if requests.get(f"{url}/ping", timeout=2).ok:
                    break
            if server.poll() is not None or time.monotonic() - started > 60:
                sys.exit("serve did not start")
            time.sleep(0.05)
        print(f"(/ping answered after {time.monotonic() - started:.1f} s)", flush=True)
        yield url
    finally:
        terminate(server, 60)


def post(url: str, text: str) -> npt.NDArray[np.float64]:
    """Score CSV lines at an endpoint, in payloads that it takes."""
    started, lines, scores = time.monotonic(), text.splitlines(keepends=True), []
    while lines:
        size = np.searchsorted(np.cumsum([len(line) for line in lines]), PAYLOAD_BYTES, side="right")
        answer = requests.post(
            f"{url}/invocations", data="".join(lines[:size]), headers={"Content-Type": "text/csv"}, timeout=60
        )
        answer.raise_for_status()
        scores += [prediction["dot_product"] for prediction in answer.json()["predictions"]]
        lines = lines[size:]
    print(f"({len(scores):,} pairs scored, {len(scores) / (time.monotonic() - started):,.0f} a second)", flush=True)
    return np.array(scores)


def to_csv(entities: Sequence[str], ips: Sequence[str]) -> str:
    """Two columns to the text of a request."""
    return pd.DataFrame({"entity": entities, "ip": ips}).to_csv(header=False, index=False)


def threshold_table(log_ins: metrics.Scores, attacks: metrics.Scores, thresholds: Sequence[float]) -> str:
    """What flagging ``-dot_product > threshold`` catches, as in the tutorial."""
    names = ("flagged", "true pos.", "precision", "recall", "F1", "FPR")
    lines = [f"{'threshold':>20}" + "".join(f"{name:>11}" for name in names)]
    for threshold in thresholds:
        lines.append(f"{threshold:>20}" + row(metrics.Detection.at(-threshold, log_ins, attacks)))
    return "\n".join(lines)


def row(detection: metrics.Detection) -> str:
    """The figures of one line."""
    shares = (detection.precision, detection.recall, detection.f1, detection.false_positive_rate)
    return f"{detection.flagged:>11,}{detection.true_positives:>11,}" + "".join(f"{share:>11.4f}" for share in shares)


def picture(path: Path, title: str, scores: Mapping[str, metrics.Scores]) -> None:
    """Draw the distributions of the scores."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    low, high = np.quantile(np.concatenate(list(scores.values())), (0.001, 0.999))
    bins = np.linspace(low, high, 120).tolist()
    for (kind, values), colour in zip(scores.items(), ("#2a6fbb", "#d1495b", "#e9a23b"), strict=False):
        axes.hist(
            np.clip(values, low, high), bins, density=True, alpha=0.55, color=colour, label=f"{kind} ({len(values):,})"
        )
    axes.margins(y=0.15)
    axes.axvline(0, color="black", linewidth=1, linestyle="--")
    axes.annotate("flagged below 0  ", (0, 1), xycoords=("data", "axes fraction"), ha="right", va="top", fontsize=9)
    axes.set(title=title, xlabel="score (dot_product): higher is more normal", ylabel="density")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    print(f"\nPicture: {path}")


if __name__ == "__main__":
    main()
