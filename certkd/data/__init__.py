"""Data sets, their splits, and the selection of samples."""
