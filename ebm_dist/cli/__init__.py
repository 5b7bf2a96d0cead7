"""The command ``ebm-dist``."""
