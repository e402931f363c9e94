"""The one training loop, its state, losses, optimizers, CUDA graphs. Knows nothing of evaluation."""
