"""auto-LiRPA as a guarded engine."""
