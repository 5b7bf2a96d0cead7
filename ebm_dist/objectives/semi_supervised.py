"""Semi-supervised learning with an energy that is a classifier (Gao et al. 2020, section 3.4; Grathwohl et al. 2020).

One output a class gives both ``p(k | x) = softmax(-E(x, k))`` and ``p(x)``, of energy ``-log mean_k exp(-E(x, k))``. Another
objective learns p(x) from all samples; to each loss of its energy this one adds that of the labels,

    label_weight * cross-entropy(labelled) + consistency_weight * KL(p(k | x) || p(k | x + r)) + entropy_weight * H(p(k | x))

where ``r``, of norm ``radius``, changes the prediction most: virtual adversarial training (Miyato et al. 2018, eq. 5 to 8).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_dist.config import (
    Mismatch,
    NonNegative,
    Params,
    Positive,
    PositiveInt,
    Probability,
    module_of,
    plugin,
    section,
)
from ebm_dist.energies import EnergyModel, frozen, is_classifier
from ebm_dist.errors import ConfigError
from ebm_dist.objectives import Batch, Objective, StepContext, Turn
from ebm_dist.samplers import Bounds, Kernel


@section
class Config:
    unsupervised: Any = plugin("objectives")
    """What learns p(x)."""
    unsupervised_weight: NonNegative = 1.0
    """Of its loss; with 0 the classifier is all that is learnt, to compare with."""
    label_weight: NonNegative = 1.0
    """Of the cross-entropy of the labelled samples."""
    label_batch: PositiveInt = 256
    """How many of them are seen in each step: all, if there are no more."""
    label_temperature: Positive = 1.0
    """``p(k | x) = softmax(-E(x, k) / T)``"""
    consistency_weight: NonNegative = 0.0
    """Of the divergence of predictions at a sample and close to it."""
    radius: Positive = 0.3
    """How close: the Euclidean norm of ``r``."""
    probe: Positive = 1e-2
    """Norm of the random step from which ``r`` is found (xi)."""
    entropy_weight: NonNegative = 0.0
    """Of the entropy of predictions at samples without a label."""
    label_ramp: Probability = 0.0
    """Share of the training over which the last two weights rise linearly from 0."""

    def check(self, params: Params) -> None:
        if not is_classifier(params):
            raise Mismatch(
                "energy.name",
                "semi-supervised learning needs one output for each class; use classifier",
            )
        if getattr(self.unsupervised, "label_temperature", None) is not None:
            raise Mismatch(
                "objective.unsupervised", "is to learn p(x) alone; drop label_temperature"
            )
        if check := getattr(self.unsupervised, "check", None):
            check(dataclasses.replace(params, objective=self.unsupervised))


class SemiSupervised:
    """The players of the unsupervised objective."""

    def __init__(self, config: Config, inner: Objective, num_steps: int) -> None:
        self.players, self.config, self.inner, self.num_steps = (
            inner.players,
            config,
            inner,
            num_steps,
        )
        if observe := getattr(inner, "observe", None):
            self.observe: Callable[[int, Mapping[str, float]], None] = observe

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        if context.labelled is None:
            raise ConfigError(
                "objective: semi-supervised learning needs samples with labels; use dataset few_labels"
            )
        for turn in self.inner.turns(batch, context):
            yield (
                self._with_labels(turn, batch.x, context.labelled, context)
                if turn.player == "energy"
                else turn
            )

    def export(self, players: Mapping[str, nn.Module]) -> EnergyModel:
        return self.inner.export(players)

    def _with_labels(self, turn: Turn, x: Tensor, labelled: Batch, context: StepContext) -> Turn:
        config = self.config
        num_classes = int(labelled.y.max()) + 1
        order = torch.randperm(
            len(labelled.x), generator=context.stream("labels"), device=x.device
        )[: config.label_batch]
        x_labelled, y = labelled.x[order], labelled.y[order]
        near = x + self._adversary(x, num_classes, context) if config.consistency_weight else x[:0]
        sizes = [len(x_labelled), len(x), len(near)]
        logits = self._logits(
            context.players["energy"], torch.cat([x_labelled, x, near]), num_classes
        )
        of_labelled, of_data, of_near = logits.split(sizes)
        cross_entropy = F.cross_entropy(of_labelled, y)
        entropy = -(of_data.softmax(dim=1) * of_data.log_softmax(dim=1)).sum(dim=1).mean()
        rise = (
            min(1.0, (context.step + 1) / (config.label_ramp * self.num_steps))
            if config.label_ramp
            else 1.0
        )
        loss = (
            config.unsupervised_weight * turn.loss
            + config.label_weight * cross_entropy
            + rise * config.entropy_weight * entropy
        )
        metrics = {
            "cross_entropy": cross_entropy,
            "label_accuracy": (of_labelled.argmax(dim=1) == y).float().mean(),
            "label_entropy": entropy,
            # below the logarithm of the number of classes where one of them takes all
            "class_entropy": torch.special.entr(of_data.softmax(dim=1).mean(dim=0)).sum(),
        }
        if config.consistency_weight:
            divergence = _divergence(of_data.detach(), of_near)
            loss = loss + rise * config.consistency_weight * divergence
            metrics["label_divergence"] = divergence
        return turn._replace(loss=loss, metrics=turn.metrics | metrics)

    def _logits(self, energy: Callable[..., Any], x: Tensor, num_classes: int) -> Tensor:
        """``(B, num_classes)``"""
        y = torch.arange(num_classes, device=x.device).expand(len(x), num_classes)
        logits: Tensor = -energy(x, y) / self.config.label_temperature
        return logits

    def _adversary(self, x: Tensor, num_classes: int, context: StepContext) -> Tensor:
        """One power iteration towards the direction in which the predictions change most (Miyato et al. 2018, section 3.3)."""
        step = torch.randn(x.shape, generator=context.stream("consistency"), device=x.device)
        with frozen(self.players["energy"]) as energy:
            with torch.no_grad():
                here = self._logits(energy, x, num_classes)
            step = _of_norm(step, self.config.probe).requires_grad_()
            (gradient,) = torch.autograd.grad(
                _divergence(here, self._logits(energy, x + step, num_classes)), step
            )
        return _of_norm(gradient, self.config.radius)


def _divergence(of: Tensor, to: Tensor) -> Tensor:
    """Mean ``KL(softmax(of) || softmax(to))``, a scalar."""
    log_of, log_to = of.log_softmax(dim=1), to.log_softmax(dim=1)
    return (log_of.exp() * (log_of - log_to)).sum(dim=1).mean()


def _of_norm(x: Tensor, norm: float) -> Tensor:
    lengths: Tensor = x.flatten(1).norm(dim=1).clamp(min=1e-30)
    return norm * x / lengths.view(-1, *[1] * (x.dim() - 1))


def networks(config: Config, *, shape: tuple[int, ...]) -> dict[str, nn.Module]:
    make = getattr(module_of(config.unsupervised), "networks", None)
    made: dict[str, nn.Module] = make(config.unsupervised, shape=shape) if make else {}
    return made


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    config: Config = params.objective
    inner = dataclasses.replace(params, objective=config.unsupervised)
    objective = module_of(inner.objective).build(
        inner, networks=networks, kernel=kernel, bounds=bounds
    )
    return SemiSupervised(config, objective, params.train.num_steps)
