"""Train a network by an objective."""
