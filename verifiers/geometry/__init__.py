"""Norm balls, margins and the search for counterexamples."""
