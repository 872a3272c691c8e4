"""Pairs of models, correct ones and ones with a mistake planted in one side."""
