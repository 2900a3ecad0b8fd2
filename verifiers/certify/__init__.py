"""Certify, verify and inspect a network."""
