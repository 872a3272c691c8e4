"""Files of weights, and their way from one framework to the other."""

from multibackend.weights.convert import Conversion, convert_weights
from multibackend.weights.files import load_checkpoint, load_weights, save_weights

__all__ = ["Conversion", "convert_weights", "load_checkpoint", "load_weights", "save_weights"]
