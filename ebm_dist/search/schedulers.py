"""Ray Tune's schedulers and search algorithm for a search: ASHA, PBT, proposals from the scores so far."""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ebm_dist import storage
from ebm_dist.config import Params
from ebm_dist.rng import numpy_stream
from ebm_dist.runs.record import STOP
from ebm_dist.search import space
from ebm_dist.search.optuna_search import Proposals
from ebm_dist.search.trial_job import trial_index
from ebm_dist.search.trials import Trial, TrialStore

if TYPE_CHECKING:
    pass


def scheduler(params: Params, store: TrialStore, home: Path) -> Any:
    from ray.tune import schedulers

    own, rungs = params.tune, params.tune.rungs
    if own.scheduler == "none":
        return None
    if own.scheduler == "pbt":
        count = iter(range(1 << 62))

        def explore(point: dict[str, Any]) -> dict[str, Any]:
            generator = numpy_stream(own.seed, "tune/explore", 0, next(count))
            return {**point, "values": space.perturbed(params, point["values"], generator)}

        return schedulers.PopulationBasedTraining(
            "step", perturbation_interval=rungs[0], custom_explore_fn=explore, log_config=False
        )

    class Asha(schedulers.ASHAScheduler):  # type: ignore[misc]
        """Knows the scores of earlier sessions: of trials that are over, and of those that are to go on.

        A trial to be ended is asked to stop, as a training is at SIGTERM, so that its workers and what watches them end in order.
        """

        is_told = False

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if super().on_trial_result(controller, trial, result) == self.STOP and result["digest"]:
                storage.write_whole(home / str(trial) / result["digest"][:16] / STOP, b"")
            return str(self.CONTINUE)

        def on_trial_add(self, controller: Any, trial: Any) -> None:
            if not self.is_told:
                self.is_told = True
                for known in store.all:
                    if known.is_over:
                        self.tell(
                            controller, SimpleNamespace(trial_id=f"earlier-{known.index}"), known
                        )
            self.tell(controller, trial, store.all[trial_index(str(trial))])

        def tell(self, controller: Any, trial: Any, known: Trial) -> None:
            super().on_trial_add(controller, trial)
            for row in known.rows:
                super().on_trial_result(
                    controller, trial, {"step": row["step"], own.metric: row[own.metric]}
                )

    return Asha(
        "step",
        max_t=own.num_steps,
        grace_period=rungs[0],
        reduction_factor=max(2, own.reduction_factor),
    )


def search_algorithm(params: Params, store: TrialStore) -> Any:
    """What Tune asks for the values of the next trial, where they depend on the scores so far."""
    from ray.tune.search import Searcher

    class Proposing(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(params.tune.metric, "min")
            self.proposals, self.waiting, self.asked = (
                Proposals(params, store.all),
                list(store.left),
                dict[str, Trial](),
            )

        def suggest(self, trial_id: str) -> Any:
            if not self.waiting:
                return Searcher.FINISHED
            trial = self.asked[trial_id] = self.waiting.pop(0)
            trial.values = trial.values or self.proposals.next(trial.index)
            store.save()
            return {"trial": trial.index, "values": trial.values}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            self.proposals.learn(self.asked[trial_id])

    return Proposing()
