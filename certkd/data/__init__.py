"""Data sets, their splits, and the choice of samples."""
