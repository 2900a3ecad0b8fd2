"""Attacks of AutoAttack's strength: one machine of ascent, and the searches built on it."""
