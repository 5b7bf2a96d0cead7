"""Training runs: the Ray cluster, the record on disk, provenance, MLflow tracking, progress."""
