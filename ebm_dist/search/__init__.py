"""The search for better settings.

``study`` (settings), ``space`` (ranges and draws), ``trials`` (state and order) and ``report`` know
no platform. ``driver``, ``schedulers`` and ``trial_job`` run the search on Ray Tune, ``scores``
evaluates checkpoints, ``optuna_search`` proposes values, ``mlflow`` logs trials.
"""
