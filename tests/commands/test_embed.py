"""``ipinsights embed`` as people call it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from conftest import Traffic, Tree, to_csv
from ipinsights.data.addresses import IPV4
from ipinsights.data.records import parse_csv
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer

pytestmark = pytest.mark.slow


def run(*arguments: object, code: str = "") -> subprocess.CompletedProcess[str]:
    code += "from ipinsights.commands.main import main; main()"
    command = [sys.executable, "-c", code, "embed", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def names(traffic: Traffic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Log-ins, of which the entities are the first column; one of an entity that training never saw."""
    path = tmp_path_factory.mktemp("names") / "log-ins.csv"
    path.write_text(to_csv(traffic.normal) + '"no, body",192.0.2.1\n')
    return path


def test_vectors_multiply_to_scores(trained: tuple[Tree, object], names: Path, tmp_path: Path) -> None:
    options = ["--model", trained[0].model, "--entities", names, "--addresses", names, "--out", tmp_path / "out"]
    result = run(*options)
    assert result.returncode == 0, result.stderr
    entities, addresses = (
        parquet.read_table(tmp_path / "out" / f"{kind}.parquet") for kind in ("entities", "addresses")
    )
    assert entities.schema.names == ["entity", "vector", "provider", "known"]
    assert str(entities.schema.field("vector").type) == "fixed_size_list<element: float>[16]"
    assert len(set(entities["entity"].to_pylist())) == len(entities)
    strangers = [
        name for name, known in zip(*map(entities.column, ("entity", "known")), strict=True) if not known.as_py()
    ]
    assert [name.as_py() for name in strangers] == ["no, body"]
    assert "no, body" not in parquet.read_table(tmp_path / "out" / "map.parquet")["name"].to_pylist()
    assert f"{len(entities):,} vectors of 16, 1 of them not known to the model" in result.stdout
    e, a = (np.array(table["vector"].to_pylist()) for table in (entities, addresses))
    model = artifact.load(trained[0].model)
    log_ins = parse_csv(names.read_bytes())
    of_entity = {name: place for place, name in enumerate(entities["entity"].to_pylist())}
    of_address = {name: place for place, name in enumerate(addresses["address"].to_pylist())}
    lines = [line.rsplit(",", 1)[-1] for line in names.read_text().splitlines()]
    rows = [of_entity[name] for name in log_ins.entities.to_pylist()]
    places = [of_address[text] for text in lines]
    products = np.einsum("nd,nd->n", e[rows], a[places])
    np.testing.assert_allclose(products, Scorer(model).score(log_ins), rtol=1e-4, atol=1e-4)


def test_without_addresses_all_known_networks_are_embedded(
    trained: tuple[Tree, object], names: Path, tmp_path: Path
) -> None:
    result = run("--model", trained[0].model, "--entities", names, "--out", tmp_path, "--points", 50)
    assert result.returncode == 0, result.stderr
    vocabulary = artifact.load(trained[0].model).vocabulary
    networks = parquet.read_table(tmp_path / "networks.parquet")
    known = {name for name in vocabulary.names(vocabulary.intervals[1]) if name}
    assert set(networks["network"].to_pylist()) == known
    assert networks["known"].to_pylist() == [True] * len(networks)
    assert all(group.endswith(f".0.0.0/{IPV4.levels[0]}") for group in networks["provider"].to_pylist())
    points = parquet.read_table(tmp_path / "map.parquet")
    assert points.schema.names == ["kind", "name", "x", "y", "provider"]
    assert points["kind"].to_pylist() == ["entity"] * 50 + ["network"] * 50
    assert np.ptp(points["x"].to_numpy()) > 0
    page = (tmp_path / "map.html").read_text()
    assert "Map of entities" in page
    assert "Map of networks" in page


def test_the_nearest_are_those_with_the_largest_cosine(
    trained: tuple[Tree, object], names: Path, tmp_path: Path
) -> None:
    model = trained[0].model
    assert run("--model", model, "--entities", names, "--out", tmp_path).returncode == 0
    entities = parquet.read_table(tmp_path / "entities.parquet")
    name = entities["entity"][0].as_py()
    result = run("--model", model, "--entities", names, "--nearest", name, "--top", 3)
    assert result.returncode == 0, result.stderr
    head, *nearest, second, _, _, last = result.stdout.splitlines()
    vectors = np.array(entities["vector"].to_pylist())
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    cosines = vectors @ vectors[0]
    cosines[0] = -1
    best = np.argsort(-cosines)[:3]
    assert head.split() == ["nearest", "to", name, "cosine", "provider", "or", "network", "(entity)"]
    assert [line.split()[0] for line in nearest] == [entities["entity"][int(place)].as_py() for place in best]
    assert [float(line.split()[1]) for line in nearest] == pytest.approx(cosines[best], abs=1e-4)
    assert "(network)" in second
    assert "/" in last.split()[0]


def test_t_sne_needs_scikit_learn(trained: tuple[Tree, object], names: Path, tmp_path: Path) -> None:
    options = ["--model", trained[0].model, "--entities", names, "--map", "tsne", "--points", 40, "--out", tmp_path]
    result = run(*options)
    assert result.returncode == 0, result.stderr
    assert "by t-SNE" in (tmp_path / "map.html").read_text()
    assert parquet.read_table(tmp_path / "map.parquet")["x"].to_numpy().std() > 0
    without = run(*options, code="import sys; sys.modules['sklearn.manifold'] = None; ")
    assert without.returncode == 1
    assert without.stderr == ("ipinsights: t-SNE needs scikit-learn: pip install scikit-learn, or use the map pca\n")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            ["--out", "OUT"],
            "a model keeps hashes of entities, not their names: give the names in a file (--entities FILE)",
        ),
        (["--addresses", "NAMES", "--nearest", "a"], "a model keeps hashes of entities, not their names"),
        (
            ["--entities", "NAMES"],
            "there is nothing to do: name a folder to write to (--out), or an entity (--nearest)",
        ),
        (["--entities", "NAMES", "--nearest", "nobody"], "the model does not know 'nobody', so nothing is near it"),
        (["--entities", "/nowhere", "--out", "OUT"], "cannot read /nowhere"),
        (["--entities", "/dev/null", "--out", "OUT"], "/dev/null is empty"),
        (["--entities", "NAMES", "--addresses", "BAD", "--out", "OUT"], "not an IPv4 address: "),
        (["--entities", "RAGGED", "--out", "OUT"], "is not CSV with as many columns in each line"),
        (["--entities", "EMPTY", "--out", "OUT"], "an entity is empty"),
        (["--entities", "NAMES", "--out", "NAMES"], "cannot write NAMES: "),
        (
            ["--entities", "TWO", "--addresses", "NAMES", "--map", "tsne", "--out", "OUT"],
            "t-SNE needs at least 3 points",
        ),
    ],
)
def test_a_fault_is_told_in_a_sentence(
    options: list[str], complaint: str, trained: tuple[Tree, object], names: Path, tmp_path: Path
) -> None:
    two = sorted({line.split(",")[0] for line in names.read_text().splitlines() if line.startswith("user_")})[:2]
    texts = {"BAD": "a,1.2.3\n", "RAGGED": "a\nb,1.2.3.4\n", "EMPTY": '"",1.2.3.4\n', "TWO": "\n".join(two)}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    paths = {"NAMES": names, **{name: tmp_path / name for name in ("OUT", "BAD", "RAGGED", "EMPTY", "TWO")}}
    result = run("--model", trained[0].model, *(paths.get(option, option) for option in options))
    assert result.returncode == 1
    assert complaint.replace("NAMES", str(names)) in result.stderr
    assert result.stderr.count("\n") == 1
