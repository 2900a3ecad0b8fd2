"""Summarise the rows of a method: what it adds to screens, one module per method that adds something."""
