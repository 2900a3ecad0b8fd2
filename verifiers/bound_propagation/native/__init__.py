"""certkd's own bound-propagation engine."""
