"""The training loop, its state and checkpoints, gradient reduction and optimizers."""
