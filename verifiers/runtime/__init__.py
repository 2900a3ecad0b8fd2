"""Run a network under certification: modes, memory, fingerprints, batches of samples."""
