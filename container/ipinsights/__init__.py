"""IP Insights, open: learns from log-ins which (entity, IP address) pairs are normal, and scores new ones.

`ipinsights.training.fit` trains a `Model`, `ipinsights.model` keeps it and scores with it,
and `ipinsights.sagemaker` makes them a SageMaker algorithm container.
"""

__version__ = "0.1.0"
