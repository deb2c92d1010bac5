"""Protocols by which models are judged: settings, results, and pages of what goes wrong."""
