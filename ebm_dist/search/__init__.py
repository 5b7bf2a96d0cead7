"""The search for better settings: ``study`` (space, draws, trials and their order), ``proposals``, ``judge`` (scores), ``report``,
and ``tuning``, which runs it on Ray Tune.
"""
