"""Diagnosis: why two models part, by formulas tried on recorded numbers, without any framework."""

from multibackend.parity.causes.diagnosis import diagnose

__all__ = ["diagnose"]
