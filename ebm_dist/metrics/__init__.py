"""Metrics that several evaluations share: classifier features, out-of-distribution image sets, the partition function."""
