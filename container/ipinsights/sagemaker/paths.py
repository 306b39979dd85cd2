"""Where things lie under /opt/ml, as one object, so that any folder can play /opt/ml."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """The layout that SageMaker prescribes. Making one makes no folder."""

    base: Path

    @classmethod
    def from_environment(cls) -> "Paths":
        """/opt/ml, or what ``SAGEMAKER_BASE_DIR`` names (as in the sagemaker-training toolkit)."""
        return cls(Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")))

    @property
    def hyperparameters(self) -> Path:
        """A JSON object of strings."""
        return self.base / "input" / "config" / "hyperparameters.json"

    @property
    def input_data_config(self) -> Path:
        """What is known of each channel."""
        return self.base / "input" / "config" / "inputdataconfig.json"

    @property
    def resource_config(self) -> Path:
        """The hosts of the job."""
        return self.base / "input" / "config" / "resourceconfig.json"

    def channel(self, name: str) -> Path:
        """A channel's files."""
        return self.channels / name

    def pipe(self, channel: str) -> Path:
        """What a channel in Pipe mode comes through the first time; each further pass over it has a pipe of its own."""
        return self.channel(f"{channel}_0")

    @property
    def channels(self) -> Path:
        """Has a folder for each channel that is not a pipe."""
        return self.base / "input" / "data"

    @property
    def model(self) -> Path:
        """Becomes model.tar.gz after training; holds its contents when serving."""
        return self.base / "model"

    @property
    def models(self) -> Path:
        """Holds the models of a multi-model endpoint, each in a folder of its own."""
        return self.base / "models"

    @property
    def checkpoints(self) -> Path:
        """Kept in step with a bucket by the platform; there only if the job has checkpoints."""
        return self.base / "checkpoints"

    @property
    def report(self) -> Path:
        """Part of output.tar.gz."""
        return self.base / "output" / "data" / "report.html"

    @property
    def failure(self) -> Path:
        """Its first 1,024 characters become the job's FailureReason."""
        return self.base / "output" / "failure"
