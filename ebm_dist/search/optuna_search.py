"""Proposals for trials by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011)."""

import json
from collections.abc import Iterable
from typing import Any

from ebm_dist.config import Params
from ebm_dist.errors import ConfigError
from ebm_dist.rng import numpy_stream
from ebm_dist.search import space
from ebm_dist.search.space import Range
from ebm_dist.search.trials import WORST, Trial

_ATTEMPTS = 100


class Proposals:
    """Values proposed by Optuna from the scores so far.

    Raise :class:`ConfigError` if Optuna is not installed.
    """

    def __init__(self, params: Params, trials: Iterable[Trial]) -> None:
        try:
            import optuna
        except ImportError:
            raise ConfigError(
                "tune.search: optuna is not installed; install it with: pip install"
                " 'ebm-dist[tune]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.params, self.ranges = params, params.tune.ranges(params)
        self.defaults = space.keys(params)
        self.space = {
            key: _distribution(span, self.defaults[key]) for key, span in self.ranges.items()
        }
        self.study = optuna.create_study()
        for trial in trials:
            if trial.is_over:
                self.learn(trial)

    def next(self, index: int) -> dict[str, Any]:
        """Return values that the settings allow: Optuna's, or a random draw if it finds none.

        Each trial has its own random stream; otherwise a resumed search would repeat its first
        proposals.
        """
        import optuna

        tune = self.params.tune
        seed = int(numpy_stream(tune.seed, "tune/proposals", 0, index).integers(1 << 31))
        self.study.sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=max(4, tune.num_trials // 4)
        )
        for _ in range(_ATTEMPTS):
            proposal = self.study.ask(self.space).params
            values = {
                key: space.rounded(self._value(key, value), self.defaults[key])
                for key, value in proposal.items()
            }
            if space.is_possible(self.params, values):
                return values
        return space.draw(self.params, index)

    def learn(self, trial: Trial) -> None:
        """Add the score of a trial that is over; a trial that diverged or failed has the worst."""
        import optuna

        score = trial.score(self.params.tune.metric)
        encoded = {
            key: json.dumps(value) if self.ranges[key].choice else value
            for key, value in trial.values.items()
        }
        self.study.add_trial(
            optuna.trial.create_trial(
                params=encoded, distributions=self.space, value=WORST if score is None else score
            )
        )

    def _value(self, key: str, value: Any) -> Any:
        return json.loads(value) if self.ranges[key].choice else value


def _distribution(span: Range, example: Any) -> Any:
    from optuna import distributions

    if span.choice:  # as JSON, because Optuna accepts no lists
        return distributions.CategoricalDistribution([json.dumps(value) for value in span.choice])
    ends = span.log or span.linear
    assert ends
    if isinstance(example, int):
        return distributions.IntDistribution(round(ends[0]), round(ends[1]), log=bool(span.log))
    return distributions.FloatDistribution(*ends, log=bool(span.log))
