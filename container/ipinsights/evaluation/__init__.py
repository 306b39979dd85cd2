"""How good a model is, and against what: comparison, simulated log-ins, baselines."""
