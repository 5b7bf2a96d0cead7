"""Everything that needs a GPU, as one command with a time limit: ``python -m benchmarks.gpu``."""
