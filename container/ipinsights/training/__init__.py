"""How a model is learnt. The only folder that imports torch."""
