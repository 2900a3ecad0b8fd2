"""auto-LiRPA as an engine, with a guard."""
