"""Properties of networks: boxes of inputs, and linear inequalities that no output may satisfy there."""
