"""Running a training: the Ray cluster, the record on disk, lineage, MLflow tracking, progress."""
