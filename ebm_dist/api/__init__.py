"""The library: train, sample and use models from Python, in one process without Ray.

``import ebm_dist as ebm`` has the public names of this room; each is imported on first use.
"""
