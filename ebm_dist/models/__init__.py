"""Trained models: load, export, latent chains, requests to a served model."""

from ebm_dist.models.trained import TrainedModel, export, from_checkpoint, load

__all__ = ["TrainedModel", "export", "from_checkpoint", "load"]
