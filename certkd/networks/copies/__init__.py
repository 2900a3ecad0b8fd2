"""Compressed copies of networks: pruned, low-rank, int8."""
