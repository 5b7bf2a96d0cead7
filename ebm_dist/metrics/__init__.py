"""Metrics that several evaluations share: classifier features, other image sets, AIS."""
