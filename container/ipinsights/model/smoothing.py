"""How likely each of several places is, from few events: every count backs off to something less specific.

The places, such as the networks in a longer one or the countries, divide what is around them. An event is in a place c
of them with the probability

    fabricated      p(c)          = (N(c) + PRIOR * share) / (N + PRIOR)
    any entity      base(c)       = (E(c) + PRIOR * share) / (sum of E over the places + PRIOR)
    one entity      p(c | entity) = (n(c) - DISCOUNT + rest * base(c)) / (n + CONCENTRATION),
                                    n(c) - DISCOUNT being 0 where n(c) is 0
                    rest          = CONCENTRATION + DISCOUNT * t + n of no known place

N is how many fabricated pairs have an address there, E the number of entities seen, n the number of events of the
entity, t the number of the places where the entity was seen, and share the fraction of the addresses that is in c. N
and n without (c) are the totals of all that is around the places.

An entity backs off to counts of entities, as in the hierarchical Pitman-Yor process where every entity opens one table
a dish (Teh, ACL 2006): one entity that moves every day through a provider's pool makes the pool frequent, but no
likelier to be the next place of another. A fabricated pair has the address of another pair, a hundred times as frequent
one ten times as likely (POWER): one busy account is no majority. Training draws its shuffled negatives so, too
(`training.sampling`). In RANDOM_SHARE of them the address is uniformly random.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

CONCENTRATION = 0.1
DISCOUNT = 0.5
PRIOR = 3.0
RANDOM_SHARE = 0.1
"""Chosen on the validation and far splits of the Tor relays, where each may be half or twice as large for .001."""
POWER = 0.5
"""A pair of an entity and an address counts in N as its number of events to the power of this: at 1 all events are
equally likely in fabricated pairs, at 0 all pairs. At 0, a score would no longer say how much more likely the pair is
than chance, but favour busy addresses, whoever asks: much worse on Tor relays (`benchmarks/README.md`)."""
_GRAIN = 2.0**-10
"""What a pair counts in N is a multiple of this, so that sums are exact, and so the same in any order."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Numbers: TypeAlias = npt.NDArray[np.integer] | npt.NDArray[np.floating] | float


def of_fabricated(counts: npt.NDArray[np.integer]) -> Floats:
    """What each pair counts in N, by its events."""
    weights: Floats = np.rint(counts**POWER / _GRAIN) * _GRAIN
    return weights


def of_all(counts: Numbers, together: Numbers, share: Numbers) -> Floats:
    """The probability of each place by counts of entities, or of fabricated pairs."""
    probability: Floats = (np.asarray(counts) + PRIOR * share) / (together + PRIOR)
    return probability


def rest_of(known: Numbers, elsewhere: Numbers) -> Floats:
    """What is left for places that an entity never used: of t known places, with n of no known place."""
    rest: Floats = CONCENTRATION + DISCOUNT * np.asarray(known) + elsewhere
    return rest


def of_one(events: Numbers, together: Numbers, rest: Floats, base: Numbers) -> Floats:
    """The probability of each place by the events of one entity."""
    probability: Floats = (np.maximum(events - DISCOUNT, 0) + rest * base) / (together + CONCENTRATION)
    return probability


def against_fabricated(made_up: Floats, random: Numbers = 1) -> Floats:
    """How likely a fabricated pair is in each place: one with an address of another pair, or with a random one."""
    probability: Floats = RANDOM_SHARE * np.asarray(random) + (1 - RANDOM_SHARE) * made_up
    return probability
