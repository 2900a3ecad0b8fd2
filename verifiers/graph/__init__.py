"""A network captured as a graph of operators that have bounds."""
