"""MLflow: what a training did, and the model in a form that MLflow loads and serves."""
