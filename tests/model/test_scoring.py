import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from conftest import PEAK, Traffic, Tree, to_events
from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.records import Records
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact, scoring
from ipinsights.model.history import History
from ipinsights.model.model import Counted, Model
from ipinsights.model.scoring import Scorer
from ipinsights.training.fit import fit


@pytest.fixture(scope="module")
def scorer(traffic: Traffic) -> Scorer:
    hp = Hyperparameters(num_entity_vectors=200, vector_dim=16, epochs=1, mini_batch_size=500, num_ip_encoder_layers=2)
    return Scorer(fit(to_events(traffic.train, 200), hp))


def test_a_score_is_the_inner_product_of_the_embeddings(scorer: Scorer, traffic: Traffic) -> None:
    embedded = scorer.embed(traffic.normal)
    assert embedded.entity.shape == embedded.ip.shape == (len(traffic.normal), 16)
    exact = (embedded.entity.astype(np.float64) * embedded.ip).sum(1)
    np.testing.assert_allclose(embedded.scores, exact, atol=1e-5)
    np.testing.assert_allclose(scorer.score(traffic.normal), exact, atol=1e-5)


def test_a_score_does_not_depend_on_its_company(
    scorer: Scorer, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on whether all leaves are encoded beforehand, and by how many at a time."""
    whole = scorer.score(traffic.normal)
    one_by_one = [
        scorer.score(Records(traffic.normal.entities[i : i + 1], traffic.normal.addresses[i : i + 1]))[0]
        for i in range(200)
    ]
    assert one_by_one == whole[:200].tolist()
    assert (scorer.embed(traffic.normal).scores == whole).all()
    monkeypatch.setattr(scoring, "_CHUNK", 7)
    monkeypatch.setattr(scoring, "_TABLE_BYTES", 1)
    afresh = Scorer(scorer._model)
    assert afresh._encoded is None
    np.testing.assert_allclose(afresh.score(traffic.normal), whole, atol=1e-5)
    monkeypatch.setattr(scorer, "_native", None)
    assert (scorer.score(traffic.normal) == whole).all()
    monkeypatch.setattr(scoring, "score_pairs", lambda *_: None)
    np.testing.assert_allclose(scorer.score(traffic.normal), whole, atol=1e-5)


def test_columns_score_as_records_and_nan_where_a_row_cannot_be_read(scorer: Scorer, traffic: Traffic) -> None:
    entities = traffic.normal.entities.to_pylist()
    texts: list[str | None] = list(addresses.render(traffic.normal.addresses))
    assert (scorer.score_columns(pd.Series(entities), pd.Series(texts)) == scorer.score(traffic.normal)).all()
    texts[1], texts[3] = None, "1.2.3.999"
    scores = scorer.score_columns(pd.Series(entities), pd.Series(texts))
    assert np.flatnonzero(np.isnan(scores)).tolist() == [1, 3]
    np.testing.assert_allclose(scores[4:], scorer.score(traffic.normal)[4:], atol=1e-5)
    assert np.isnan(scorer.score_columns([None], [None])).all()
    assert scorer.score_columns([], []).shape == (0,)


def test_a_model_is_opened_by_its_folder(trained: tuple[Tree, object], traffic: Traffic, tmp_path: Path) -> None:
    expected = Scorer(artifact.load(trained[0].model)).score(traffic.normal)
    assert (Scorer.open(str(trained[0].model)).score(traffic.normal) == expected).all()
    with pytest.raises(UserError, match="no model"):
        Scorer.open(tmp_path)


def test_nothing_and_strangers_can_be_scored(scorer: Scorer) -> None:
    assert scorer.score(Records(pa.array([], pa.string()), np.zeros(0, np.uint32))).shape == (0,)
    stranger = Records(pa.array(["nobody has seen me"]), np.array([0], np.uint32))
    assert np.isfinite(scorer.score(stranger)).all()


def test_a_command_does_not_wait_for_pandas_and_no_request_does() -> None:
    code = "import sys, ipinsights.sagemaker.{}; sys.exit('pandas' in sys.modules)"
    for module, there in (("commands", False), ("server", True)):
        command = [sys.executable, "-c", code.format(module)]
        assert subprocess.run(command, timeout=120, check=False).returncode == there


def test_scoring_needs_no_torch() -> None:
    code = "import sys, ipinsights.sagemaker.server, ipinsights.sagemaker.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_what_explains_scores_takes_no_memory_of_a_scorer(tmp_path: Path) -> None:
    """It is in the file, but never read from there."""
    index, rng = EntityIndex(1000), np.random.default_rng(0)
    drawn = rng.integers(2**32, size=4_000_000, dtype=np.uint32)
    events = Events((drawn % 1000).astype(np.int32), drawn, index)
    blank = Model.blank(IPV4, 1000, 8, 1)
    history, none = History.of(events, IPV4), np.zeros(0, np.int64)
    counted = Counted(history.rows, blank.entity, np.ones(1000, np.float32), none, history, history)
    assert history.nbytes > 30e6
    peaks, needs = [], []
    for model in (blank, dataclasses.replace(blank, counted=counted)):
        artifact.save(model, tmp_path, {})
        opened = f"s = Scorer.open({str(tmp_path)!r}, untrained=True)"
        code = f"from ipinsights.model.scoring import Scorer; {opened}; print({PEAK})"
        result = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
        peaks.append(int(result.stdout))
        needs.append(Scorer.memory(model))
    assert needs[0] == needs[1]
    assert peaks[1] - peaks[0] < 3000
