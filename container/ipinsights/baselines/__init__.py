"""Scores without learnt vectors, for the model to be measured against: counting alone goes a long way.

`LongestPrefix` asks how near an address is to the entity's own earlier addresses; `LikelihoodRatio` weighs that by how
common the address is for everybody. Both take integers and need numpy alone. Entities are any integers that tell them
apart: they are not hashed to rows.
"""

from ipinsights.baselines.likelihood_ratio import LikelihoodRatio
from ipinsights.baselines.longest_prefix import LongestPrefix

__all__ = ["LikelihoodRatio", "LongestPrefix"]
