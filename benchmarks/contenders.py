"""What is compared: the model and the baselines, behind one face.

A contender learns from observed pairs and gives a scorer of any others. A scorer takes entity rows (int [n]) and
addresses of the pairs' family ([n]) and returns a score each, [n]: higher is more normal.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import datasets
from ipinsights.data.addresses import IPV4, Addresses, Family
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.evaluation.baselines import LongestPrefix
from ipinsights.evaluation.likelihood_ratio import IMPROVED, PUBLISHED, LikelihoodRatio, Smoothing
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.model import Model
from ipinsights.training import fit as training
from ipinsights.training.progress import Listener

Rows = npt.NDArray[np.integer[Any]]
Pairs = tuple[Rows, Addresses]
Scores = npt.NDArray[np.floating[Any]]
Scorer = Callable[[Rows, Addresses], Scores]
Contender = Callable[[Events, Family, int], Scorer]
"""Learns from observed pairs of a family, with a seed."""

_PROVIDER_LEVELS = (16, 20)
_PROVIDER_SMOOTHING = Smoothing(prior=100.0, random_share=0.01)
"""The settings with providers that did best on the validation split; see `LikelihoodRatio.fit`."""


def longest_prefix(train: Events, family: Family, seed: int) -> Scorer:
    """`LongestPrefix`; nothing in it is random."""
    del seed
    return LongestPrefix.fit(train.entity, train.address, width=family.width).score


def likelihood_ratio(smoothing: Smoothing) -> Contender:
    """`LikelihoodRatio`; nothing in it is random."""

    def fit(train: Events, family: Family, seed: int) -> Scorer:
        del seed
        return LikelihoodRatio.fit(train.entity, train.address, width=family.width, smoothing=smoothing).score

    return fit


def likelihood_ratio_of_providers(networks: Networks) -> Contender:
    """`LikelihoodRatio` with each address's provider above its prefixes."""

    def provider(address: Addresses) -> npt.NDArray[np.int64]:
        return np.append(networks.labels[0].astype(np.int64), -1)[networks.find(address)]  # -1 where there is no range

    def fit(train: Events, family: Family, seed: int) -> Scorer:
        del seed
        fitted = LikelihoodRatio.fit(
            train.entity,
            train.address,
            groups=provider(train.address),
            width=family.width,
            levels=_PROVIDER_LEVELS,
            smoothing=_PROVIDER_SMOOTHING,
        )
        return lambda entity, address: fitted.score(entity, address, provider(address))

    return fit


def model(
    hyperparameters: Mapping[str, Any], networks: Networks | None = None, listener: Listener | None = None
) -> Contender:
    """The product. ``num_entity_vectors`` is the number of rows that the training pairs were read with."""

    def fit(train: Events, family: Family, seed: int) -> Scorer:
        chosen = Hyperparameters(
            num_entity_vectors=train.index.num_rows, ip_version=family.version, seed=seed, **hyperparameters
        )
        return scorer(training.fit(train, chosen, networks=networks, listener=listener))

    return fit


def scorer(fitted: Model) -> Scorer:
    """The scores of a trained model."""
    return lambda entity, address: np.einsum("nd,nd->n", fitted.entity[entity], fitted.encode(address))


BASELINES: dict[str, Contender] = {
    "longest shared prefix": longest_prefix,
    "likelihood ratio, as published": likelihood_ratio(PUBLISHED),
    "likelihood ratio, counting entities": likelihood_ratio(IMPROVED),
}
"""By the name of their row."""


def networks() -> Networks:
    """The table of the contenders that know more than the events tell."""
    return Networks.read([datasets.RANGES], IPV4)
