"""One update: a window's gradients accumulated, normalised, clipped and handed to the optimizer."""
