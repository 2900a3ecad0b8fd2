"""Split boxes of few inputs: bounds of thousands of parts in one batch, and the search over them."""
