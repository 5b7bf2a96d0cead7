"""Values of the next trial from the scores so far, by Optuna's tree of Parzen estimators (Bergstra et al. 2011)."""

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
    """Asks Optuna. Raises :class:`ConfigError` if it is not installed."""

    def __init__(self, params: Params, trials: Iterable[Trial]) -> None:
        try:
            import optuna
        except ImportError:
            raise ConfigError(
                "tune.search: optuna is not installed; install it with: pip install 'ebm-dist[tune]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.params, self.ranges, self.known = (
            params,
            params.tune.ranges(params),
            space.keys(params),
        )
        self.space = {
            key: _distribution(chosen, self.known[key]) for key, chosen in self.ranges.items()
        }
        self.study = optuna.create_study()
        for trial in trials:
            if trial.is_over:
                self.learn(trial)

    def next(self, index: int) -> dict[str, Any]:
        """Values that the settings allow; those of a draw should Optuna not come to any.

        Each trial has random numbers of its own, or a search that was interrupted would make its first proposals again.
        """
        import optuna

        own = self.params.tune
        seed = int(numpy_stream(own.seed, "tune/proposals", 0, index).integers(1 << 31))
        self.study.sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=max(4, own.num_trials // 4)
        )
        for _ in range(_ATTEMPTS):
            asked = self.study.ask(self.space).params
            values = {
                key: space.rounded(self._value(key, value), self.known[key])
                for key, value in asked.items()
            }
            if space.is_possible(self.params, values):
                return values
        return space.draw(self.params, index)

    def learn(self, trial: Trial) -> None:
        """Tell the score of a trial that is over; that of one that diverged or failed is the worst."""
        import optuna

        score = trial.score(self.params.tune.metric)
        told = {
            key: json.dumps(value) if self.ranges[key].choice else value
            for key, value in trial.values.items()
        }
        self.study.add_trial(
            optuna.trial.create_trial(
                params=told, distributions=self.space, value=WORST if score is None else score
            )
        )

    def _value(self, key: str, value: Any) -> Any:
        return json.loads(value) if self.ranges[key].choice else value


def _distribution(chosen: Range, example: Any) -> Any:
    from optuna import distributions

    if chosen.choice:
        return distributions.CategoricalDistribution(
            [json.dumps(value) for value in chosen.choice]
        )  # it takes no lists
    ends = chosen.log or chosen.linear
    assert ends
    if isinstance(example, int):
        return distributions.IntDistribution(round(ends[0]), round(ends[1]), log=bool(chosen.log))
    return distributions.FloatDistribution(*ends, log=bool(chosen.log))
