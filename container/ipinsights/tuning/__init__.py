"""The search for good hyperparameters: trainings side by side, compared by their validation."""
