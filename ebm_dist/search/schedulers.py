"""Ray Tune's schedulers and search algorithm: ASHA, PBT, and proposals from the scores so far."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ebm_dist import storage
from ebm_dist.config import Params
from ebm_dist.rng import numpy_stream
from ebm_dist.runs.record import STOP
from ebm_dist.search import space
from ebm_dist.search.optuna_search import Proposals
from ebm_dist.search.trial_job import trial_index
from ebm_dist.search.trials import Trial, TrialStore


def scheduler(params: Params, store: TrialStore, home: Path) -> Any:
    """Return Tune's scheduler for these settings, with the scores of earlier sessions, or None."""
    from ray.tune import schedulers

    tune, rungs = params.tune, params.tune.rungs
    if tune.scheduler == "none":
        return None
    if tune.scheduler == "pbt":
        count = iter(range(1 << 62))

        def explore(point: dict[str, Any]) -> dict[str, Any]:
            generator = numpy_stream(tune.seed, "tune/explore", 0, next(count))
            return {**point, "values": space.perturbed(params, point["values"], generator)}

        return schedulers.PopulationBasedTraining(
            "step", perturbation_interval=rungs[0], custom_explore_fn=explore, log_config=False
        )

    class Asha(schedulers.ASHAScheduler):  # type: ignore[misc]
        """ASHA that is given the scores of earlier sessions.

        A trial to be ended gets a stop file, like a training at SIGTERM, so that its workers and
        their watchers end in order.
        """

        has_earlier_scores = False

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if super().on_trial_result(controller, trial, result) == self.STOP and result["digest"]:
                storage.write_whole(home / str(trial) / result["digest"][:16] / STOP, b"")
            return str(self.CONTINUE)

        def on_trial_add(self, controller: Any, trial: Any) -> None:
            if not self.has_earlier_scores:
                self.has_earlier_scores = True
                for ended in store.all:
                    if ended.is_over:
                        stand_in = SimpleNamespace(trial_id=f"earlier-{ended.index}")
                        self.replay(controller, stand_in, ended)
            self.replay(controller, trial, store.all[trial_index(str(trial))])

        def replay(self, controller: Any, trial: Any, recorded: Trial) -> None:
            super().on_trial_add(controller, trial)
            for row in recorded.rows:
                super().on_trial_result(
                    controller, trial, {"step": row["step"], tune.metric: row[tune.metric]}
                )

    return Asha(
        "step",
        max_t=tune.num_steps,
        grace_period=rungs[0],
        reduction_factor=max(2, tune.reduction_factor),
    )


def search_algorithm(params: Params, store: TrialStore) -> Any:
    """Return Tune's searcher that proposes the values of the next trial from the scores so far."""
    from ray.tune.search import Searcher

    class Proposing(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(params.tune.metric, "min")
            self.proposals = Proposals(params, store.all)
            self.waiting, self.suggested = list(store.left), dict[str, Trial]()

        def suggest(self, trial_id: str) -> Any:
            if not self.waiting:
                return Searcher.FINISHED
            trial = self.suggested[trial_id] = self.waiting.pop(0)
            trial.values = trial.values or self.proposals.next(trial.index)
            store.save()
            return {"trial": trial.index, "values": trial.values}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            self.proposals.learn(self.suggested[trial_id])

    return Proposing()
