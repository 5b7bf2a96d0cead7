"""Train, tune, judge and ship energy-based models, on one laptop or a cluster.

Low energy means likely: ``p(x) = exp(-E(x)) / Z``. Everywhere.
"""
