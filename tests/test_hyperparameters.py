import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters, declarations

REQUIRED = {"num_entity_vectors": "20000", "vector_dim": "128"}


def test_documented_defaults() -> None:
    hp = Hyperparameters.parse(REQUIRED)
    assert dataclasses.asdict(hp) == {
        "num_entity_vectors": 20_000,
        "vector_dim": 128,
        "batch_metrics_publish_interval": 1000,
        "epochs": 10,
        "learning_rate": 0.001,
        "mini_batch_size": 10_000,
        "num_ip_encoder_layers": 1,
        "random_negative_sampling_rate": 1,
        "shuffled_negative_sampling_rate": 1,
        "weight_decay": 0.00001,
        "ip_version": 4,
        "seed": 0,
        "malformed_rows": "fail",
        "malformed_rows_limit": 0.1,
        "saved_epoch": "last",
        "early_stopping_patience": 0,
        "history": 128,
        "held_out_share": 0.02,
        "training_hosts": "auto",
        "device": "auto",
        "checkpoint_interval_minutes": 10.0,
    }


def test_defaults_follow_the_data_and_what_is_set_does_not() -> None:
    few = Hyperparameters.parse(REQUIRED).adapted(59_317)
    assert few.mini_batch_size == 9887  # sixty steps in ten epochs
    assert few.learning_rate == pytest.approx(0.03)
    more = Hyperparameters.parse(REQUIRED).adapted(1_000_000)
    assert more.mini_batch_size == 10_000
    assert more.learning_rate == pytest.approx(0.25 / 1000**0.5)
    most = Hyperparameters.parse(REQUIRED).adapted(100_000_000)
    assert (most.mini_batch_size, most.learning_rate) == (10_000, 0.001)
    as_set = {**REQUIRED, "mini_batch_size": "10000", "learning_rate": "0.001"}
    for events in (1, 59_317, 100_000_000):
        assert Hyperparameters.parse(as_set).adapted(events) == Hyperparameters.parse(as_set)
    one = dataclasses.replace(Hyperparameters.parse(REQUIRED), mini_batch_size=1000).adapted(59_317)
    assert one.mini_batch_size == 1000
    assert one.learning_rate == pytest.approx(0.25 / 600**0.5)


@given(st.integers(1, 10**9), st.integers(1, 1000))
def test_adapted_values_are_valid_and_final(events: int, epochs: int) -> None:
    hp = Hyperparameters(num_entity_vectors=10, vector_dim=4, epochs=epochs).adapted(events)
    assert 1 <= hp.mini_batch_size <= min(10_000, events)
    assert 0.001 <= hp.learning_rate <= 0.03
    assert hp.adapted(1) == hp


@pytest.mark.parametrize("text", ["5", "7"])
def test_there_are_two_ip_versions(text: str) -> None:
    assert Hyperparameters.parse({**REQUIRED, "ip_version": "6"}).ip_version == 6
    with pytest.raises(UserError, match=f"ip_version={text} is "):
        Hyperparameters.parse({**REQUIRED, "ip_version": text})


@pytest.mark.parametrize("text", ["skip", ' "skip" '])
def test_a_word_may_be_quoted(text: str) -> None:
    assert Hyperparameters.parse({**REQUIRED, "malformed_rows": text}).malformed_rows == "skip"


@pytest.mark.parametrize("text", ["Skip", "", '"', '"skip', "1"])
def test_only_the_words_declared_are_known(text: str) -> None:
    with pytest.raises(UserError, match="malformed_rows=.* is not one of fail, skip, skip_placeholders$"):
        Hyperparameters.parse({**REQUIRED, "malformed_rows": text})


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("num_entity_vectors", "1", "250000000"),
        ("vector_dim", "4", "4096"),
        ("learning_rate", "1e-6", "10.0"),
        ("mini_batch_size", "1", "500000"),
        ("num_ip_encoder_layers", "0", "100"),
        ("weight_decay", "0.0", "10.0"),
    ],
)
def test_documented_ranges_are_inclusive(name: str, low: str, high: str) -> None:
    for text in (low, high):
        assert getattr(Hyperparameters.parse({**REQUIRED, name: text}), name) == float(text)
    beyond = [str(float(low) - 1e-3) if "." in high else str(int(low) - 1), str(float(high) * 2)]
    for text in beyond:
        with pytest.raises(UserError, match=f"{name}={text} is out of range"):
            Hyperparameters.parse({**REQUIRED, name: text})


@pytest.mark.parametrize(("text", "value"), [("128", 128), ('"128"', 128), ("128.0", 128), (" 64 ", 64), ("1e2", 100)])
def test_how_a_whole_number_may_come(text: str, value: int) -> None:
    parsed = Hyperparameters.parse({**REQUIRED, "vector_dim": text}).vector_dim
    assert parsed == value
    assert isinstance(parsed, int)


@pytest.mark.parametrize("text", ["0.0010234", "1e-05", '"0.01"', "3"])
def test_how_a_number_may_come(text: str) -> None:
    assert Hyperparameters.parse({**REQUIRED, "learning_rate": text}).learning_rate == float(text.strip('"'))


@pytest.mark.parametrize("text", ["", "many", "1.5", "nan", "inf", '"', '""', "1,000", "[1]"])
def test_what_is_not_a_whole_number(text: str) -> None:
    with pytest.raises(UserError, match=r"vector_dim=.* is not a whole number"):
        Hyperparameters.parse({**REQUIRED, "vector_dim": text})


@given(st.text())
def test_any_text_is_a_value_or_a_clear_error(text: str) -> None:
    try:
        assert Hyperparameters.parse({**REQUIRED, "epochs": text}).epochs >= 1
    except UserError as error:
        if "epochs=" not in str(error):
            raise


def test_the_platforms_own_keys_are_ignored() -> None:
    extra = {"_tuning_objective_metric": "validation:discriminator_auc", "sagemaker_region": '"us"', "feature_dim": "2"}
    assert Hyperparameters.parse({**REQUIRED, **extra}) == Hyperparameters.parse(REQUIRED)


def test_an_unknown_name_is_an_error_that_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="'vector_dims' is unknown; did you mean 'vector_dim'"):
        Hyperparameters.parse({**REQUIRED, "vector_dims": "8"})


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Hyperparameters.parse({"vector_dim": "2", "epochs": "x", "lr": "1"})
    for part in ("vector_dim=2 is out of range", "epochs='x'", "'lr' is unknown", "num_entity_vectors is required"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("r", "s", "valid"), [(0, 0, False), (0, 1, True), (1, 0, True), (500, 0, True), (250, 250, True), (500, 1, False)]
)
def test_negatives_a_positive(r: int, s: int, valid: bool) -> None:
    values = {**REQUIRED, "random_negative_sampling_rate": str(r), "shuffled_negative_sampling_rate": str(s)}
    if valid:
        assert Hyperparameters.parse(values).records_per_positive == 1 + r + s
    else:
        with pytest.raises(UserError, match=r"= \d+ is out of range: the sum must be in \[1, 500\]"):
            Hyperparameters.parse(values)


TUNED = {
    "num_entity_vectors": '"20000"',
    "vector_dim": "128.0",
    "epochs": "12",
    "learning_rate": "0.0010234567890123",
    "mini_batch_size": "1234",
    "num_ip_encoder_layers": "3",
    "random_negative_sampling_rate": "0",
    "shuffled_negative_sampling_rate": "7",
    "weight_decay": "1e-05",
    "_tuning_objective_metric": "validation:discriminator_auc",
    "sagemaker_estimator_class_name": '"AlgorithmEstimator"',
    "sagemaker_estimator_module": '"sagemaker.algorithm"',
}
"""What a tuning job sends: all that is tuned, drawn at full length, in the several ways of writing a number."""


def test_a_tuners_draw_is_trained_as_drawn() -> None:
    hp = Hyperparameters.parse(TUNED)
    assert hp == Hyperparameters(
        num_entity_vectors=20_000,
        vector_dim=128,
        epochs=12,
        learning_rate=0.0010234567890123,
        mini_batch_size=1234,
        num_ip_encoder_layers=3,
        random_negative_sampling_rate=0,
        shuffled_negative_sampling_rate=7,
        weight_decay=1e-5,
    )
    assert hp.adapted(100) == hp


@pytest.mark.parametrize("zero", ["0", "0.0", '"0"'])
def test_a_tuner_that_draws_no_negatives_is_told_which_sum(zero: str) -> None:
    with pytest.raises(UserError) as caught:
        Hyperparameters.parse({**TUNED, "shuffled_negative_sampling_rate": zero})
    assert str(caught.value) == (
        "Invalid hyperparameter: random_negative_sampling_rate + shuffled_negative_sampling_rate = 0 is out of range: "
        "the sum must be in [1, 500]"
    )


def test_only_defaults_that_adapt_follow_the_data() -> None:
    assert [d.name for d in declarations() if d.follows_data] == ["learning_rate", "mini_batch_size"]


def test_values_given_in_python_are_checked_alike() -> None:
    with pytest.raises(UserError, match="vector_dim=2 is out of range"):
        Hyperparameters(num_entity_vectors=1, vector_dim=2)


def test_every_declaration_is_whole() -> None:
    for declaration in declarations():
        assert declaration.help.endswith(".")
        assert bool(declaration.range) != bool(declaration.choices)
        if declaration.range and declaration.tuning:
            (low, high), (lowest, highest) = declaration.tuning, declaration.range
            assert lowest <= low < high <= highest
        if declaration.default is not None:
            assert declaration.parse(str(declaration.default)) == declaration.default
