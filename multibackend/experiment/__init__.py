"""What is trained, in words that name no framework."""

from multibackend.experiment.experiment import AUTO, NATIVE, PRECISIONS, Experiment, is_weights_path
from multibackend.experiment.model import Model

__all__ = ["AUTO", "NATIVE", "PRECISIONS", "Experiment", "Model", "is_weights_path"]
