"""Summarise the rows of a method for display; one module per method that has a summary."""
