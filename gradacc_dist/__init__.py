"""Exact gradients on any cluster: one global denominator per window."""

__version__ = "0.1.0"
