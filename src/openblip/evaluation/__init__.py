"""Protocols and metrics by which models are compared."""
