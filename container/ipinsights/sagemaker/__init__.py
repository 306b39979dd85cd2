"""The SageMaker adapter: paths, wire formats and processes. It knows no mathematics; the algorithm knows none of this.

``train`` runs `job`, ``serve`` runs `server`; ``python -m ipinsights.sagemaker`` is the image's entry point.
"""
