"""Certificates of robustness: what a network provably keeps inside a ball around each sample."""

__version__ = "0.1.0"
