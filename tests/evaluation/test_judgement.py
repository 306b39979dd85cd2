import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from conftest import Traffic, to_events
from ipinsights.data.addresses import IPV4
from ipinsights.data.networks import Networks
from ipinsights.data.records import Records
from ipinsights.errors import UserError
from ipinsights.evaluation import comparison
from ipinsights.evaluation.judgement import (
    ATTACKS,
    COUNTING,
    MODEL,
    PREFIX,
    Judgement,
    Rule,
    judge,
)
from ipinsights.evaluation.log_ins import LogIns
from ipinsights.evaluation.negatives import NEAR, OTHERS, RANDOM
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.model import Model
from ipinsights.model.scoring import Scorer
from ipinsights.training.fit import fit

pytestmark = pytest.mark.slow

TABLE = Networks(np.array([0], np.uint32), np.array([224 << 24], np.uint32), np.array([[7], [0]], np.uint32))
"""Nearly all addresses are of one provider."""


@pytest.fixture(scope="module")
def scorer(traffic: Traffic) -> Scorer:
    return Scorer(fit(to_events(traffic.train, 200), Hyperparameters(num_entity_vectors=200, vector_dim=16, epochs=2)))


@pytest.fixture(scope="module")
def log_ins(traffic: Traffic) -> LogIns:
    """Of three days, with a hundred of strangers."""
    strangers = Records(pa.array([f"stranger {n % 7}" for n in range(100)]), traffic.normal.addresses[:100])
    pairs = Records.concat([traffic.normal, strangers])
    seconds = np.linspace(0, 3 * 86400, len(pairs)).astype("timedelta64[s]")
    return LogIns(dataclasses.replace(pairs, times=np.datetime64("2026-01-02", "s") + seconds))


@pytest.fixture(scope="module")
def judgement(scorer: Scorer, log_ins: LogIns, traffic: Traffic) -> Judgement:
    train, attacks = traffic.train.hashed(), traffic.attacks
    return judge(scorer, log_ins, networks=TABLE, attacks=attacks, train=train, resamples=50)


def test_every_judge_has_a_verdict_on_every_kind(judgement: Judgement) -> None:
    found = [(verdict.attacks, verdict.judge) for verdict in judgement.verdicts]
    assert found == [(kind, who) for kind in (RANDOM, OTHERS, NEAR, ATTACKS) for who in (MODEL, PREFIX, COUNTING)]
    assert all(verdict.areas.roc_auc > 0.6 for verdict in judgement.verdicts)
    for verdict in judgement.verdicts:
        assert verdict.intervals is not None
        for (low, high), area in zip(verdict.intervals, verdict.areas, strict=True):
            assert low < area < high
    assert judgement.notes == []


def test_unknown_accounts_are_counted_and_left_out(
    judgement: Judgement, scorer: Scorer, log_ins: LogIns, traffic: Traffic
) -> None:
    assert judgement.unknown == {"log_ins": 100, "entities": 7, "attacks": 0}
    assert (judgement.log_ins, judgement.entities) == (2000, len(traffic.normal.entities.unique()))
    everyone = judge(scorer, log_ins, everyone=True, resamples=0)
    assert everyone.unknown == {"log_ins": 0, "entities": 0, "attacks": 0}
    assert everyone.log_ins == 2100
    strange = log_ins.where(np.arange(2100) >= 2000)
    with pytest.raises(UserError, match=r"the model knows none of the 7 accounts of these 100 log-ins\. .*--all"):
        judge(scorer, strange)
    assert judge(scorer, log_ins, attacks=strange.pairs, resamples=0).notes[-1].startswith("labelled attacks: not")


def test_an_untrained_model_that_was_accepted_takes_everyone(log_ins: LogIns) -> None:
    blank = Scorer(Model.blank(IPV4, num_entity_vectors=10, dim=4, blocks=0))
    assert judge(blank, log_ins, resamples=0).log_ins == len(log_ins)


def test_the_model_alone_is_judged_as_by_the_short_comparison(
    judgement: Judgement, scorer: Scorer, traffic: Traffic
) -> None:
    short = comparison.evaluate(scorer, traffic.normal, judgement.threshold)
    for verdict, one in zip(judgement.by_model, short, strict=False):
        assert verdict.attacks == one.negatives
        assert verdict.areas.roc_auc == pytest.approx(one.auc, abs=1e-12)
        assert verdict.detection == one.detection


def test_a_baseline_flags_no_more_log_ins_than_the_model(judgement: Judgement) -> None:
    by_model = judgement.false_alarms
    assert 0 < by_model < 400
    for verdict in judgement.verdicts:
        false = verdict.detection.flagged - verdict.detection.true_positives
        assert false <= by_model
        assert (verdict.judge != MODEL) or false == by_model
        if verdict.judge == COUNTING:  # its scores have hardly any ties, so it gets as many
            assert false > 0.9 * by_model


@pytest.mark.parametrize(("rule", "most"), [(Rule("budget", 20), 60), (Rule("max_false_alarms", 0.01), 20)])
def test_the_threshold_is_the_highest_that_keeps_the_budget(
    rule: Rule, most: int, scorer: Scorer, log_ins: LogIns
) -> None:
    found = judge(scorer, log_ins, rule=rule, resamples=0)
    scores = found.scores
    assert (scores < found.threshold).sum() == found.false_alarms <= most
    assert (scores <= found.threshold).sum() > most
    assert found.false_alarms >= most - 2  # but for ties
    a_day = found.a_day(found.false_alarms)
    assert a_day is not None
    assert a_day == pytest.approx(found.false_alarms / 3)
    assert found.threshold in found.thresholds


def test_a_budget_needs_times(scorer: Scorer, log_ins: LogIns) -> None:
    timeless = LogIns(dataclasses.replace(log_ins.pairs, times=None))
    with pytest.raises(UserError, match="give each log-in a time in a third column"):
        judge(scorer, timeless, rule=Rule("budget", 20))
    found = judge(scorer, timeless, resamples=0)
    assert found.days is found.a_day(5) is None


def test_what_cannot_be_told_is_said(scorer: Scorer, log_ins: LogIns) -> None:
    found = judge(scorer, log_ins, rule=Rule("max_false_alarms", 0.001), resamples=0)
    assert found.notes == [
        "Baselines (longest shared prefix, counting) are left out: they need the training log-ins",
        "2,000 log-ins are too few to tell a threshold for 0.001 of false alarms: it takes 5,000 at least",
    ]
    nowhere = dataclasses.replace(TABLE, labels=np.zeros((2, 1), np.uint32))
    assert judge(scorer, log_ins, networks=nowhere, resamples=0).notes[-1].startswith("same provider or country: not")


def test_a_sweep_is_what_each_threshold_catches(judgement: Judgement) -> None:
    for verdict in judgement.by_model:
        rows = judgement.sweep(verdict)
        assert [row["threshold"] for row in rows] == judgement.thresholds
        assert 20 < len(rows) < 210
        assert rows[0]["recall"] < 0.05
        assert rows[-1]["false_positive_rate"] > 0.95
        for row in rows:
            detection = verdict.ranking.at(row["threshold"])
            assert row["recall"] == detection.recall
            assert row["false_alarms_a_day"] == pytest.approx(row["false_alarms"] / 3)


def test_facts_are_json_and_repeat(judgement: Judgement, scorer: Scorer, log_ins: LogIns, traffic: Traffic) -> None:
    facts = judgement.facts()
    text = json.dumps(facts, allow_nan=False)
    assert set(facts["sweep"]) == {RANDOM, OTHERS, NEAR, ATTACKS}
    assert facts["comparisons"][0]["judge"] == "model"
    again = judge(
        scorer,
        log_ins,
        networks=TABLE,
        attacks=traffic.attacks,
        train=traffic.train.hashed(),
        resamples=50,
    )
    assert json.dumps(again.facts()) == text
    other = judge(scorer, log_ins, resamples=0, seed=1)
    assert other.by_model[0].areas != judgement.by_model[0].areas
