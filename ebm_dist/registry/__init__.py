"""MLflow model registry: versions, promotion, model card, serving, reproduction."""
