"""Run a network as it is certified: modes, memory, fingerprints, batches of samples."""
