"""Chains: runs in training, compiled kernels, replay buffer, diagnostics, tempering, warm-up."""
