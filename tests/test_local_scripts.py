"""Train, serve and predict by the scripts that need no Docker. Those that do are tested with the image."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from benchmarks.servers import free_port, terminate
from conftest import until

LOCAL_TEST = Path(__file__).parents[1] / "local_test"
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "SAGEMAKER_MODEL_SERVER_WORKERS": "1"}


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/ping", timeout=2).status_code == 200
    except (requests.ConnectionError, requests.Timeout):
        return False


@pytest.mark.slow
def test_train_serve_and_predict_without_docker(tmp_path: Path) -> None:
    shutil.copytree(LOCAL_TEST / "test_dir" / "input", tmp_path / "input")
    train = [str(LOCAL_TEST / "train_here.sh"), str(tmp_path)]
    job = subprocess.run(train, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    port = free_port()
    serve = [str(LOCAL_TEST / "serve_here.sh"), str(tmp_path), str(port)]
    with subprocess.Popen(serve, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until(lambda: answers(port))
            predict = [str(LOCAL_TEST / "predict.sh"), str(LOCAL_TEST / "payload.csv"), "text/csv", str(port)]
            answer = subprocess.run(predict, capture_output=True, text=True, timeout=60, check=True)
        finally:
            terminate(server, 40)
    assert [list(prediction) for prediction in json.loads(answer.stdout)["predictions"]] == [["dot_product"]] * 2
    assert server.returncode == 0
