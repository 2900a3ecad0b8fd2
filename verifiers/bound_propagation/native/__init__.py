"""certkd's own engine of bound propagation."""
