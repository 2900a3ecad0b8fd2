"""Networks and instances from other tools and for them."""
