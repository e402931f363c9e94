"""A run's directory: its records, checkpoints, the exposure of its weights, runs made of weights from elsewhere."""
