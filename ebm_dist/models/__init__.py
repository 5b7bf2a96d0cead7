"""Trained models: export, load, chains in latent space, requests to a served model."""

from ebm_dist.models.trained import TrainedModel, export, from_checkpoint, load

__all__ = ["TrainedModel", "export", "from_checkpoint", "load"]
