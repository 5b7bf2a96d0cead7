"""Chains: running them in training, compiled kernels, the replay buffer, diagnostics, tempering, warm-up."""
