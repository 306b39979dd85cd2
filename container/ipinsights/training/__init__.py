"""Training of a model. No other folder imports torch."""
