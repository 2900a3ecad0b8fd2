"""Balls, margins and the search for counterexamples."""
