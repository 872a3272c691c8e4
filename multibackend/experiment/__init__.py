"""What is trained, in words that name no framework."""

from multibackend.experiment.experiment import AUTO, PRECISIONS, Experiment
from multibackend.experiment.model import Model

__all__ = ["AUTO", "PRECISIONS", "Experiment", "Model"]
