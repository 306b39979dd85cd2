"""Evaluation of a model: comparison, simulated log-ins, baselines."""
