"""Randomized smoothing: sampling, statistics, certificates, and published logs."""
