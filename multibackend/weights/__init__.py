"""Files of weights, and their way from one framework to the other."""
