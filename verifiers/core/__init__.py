"""Quantities, statuses, settings and errors that everything shares; no torch."""
