"""Train, tune, evaluate and serve energy-based models, on one laptop or a cluster.

Low energy means likely, everywhere in this package: ``p(x) = exp(-E(x)) / Z``.
"""
