"""Training of a model, with torch. No server imports this folder."""
