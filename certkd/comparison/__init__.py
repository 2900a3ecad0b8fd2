"""Compare certificate files; no torch."""
