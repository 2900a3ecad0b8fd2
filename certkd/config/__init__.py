"""Settings, and how they are read from YAML."""
