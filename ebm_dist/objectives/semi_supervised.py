"""Semi-supervised learning with an energy that is also a classifier (Gao et al. 2020, section 3.4).

One output per class gives both ``p(k | x) = softmax(-E(x, k))`` and ``p(x)``, of energy
``-log mean_k exp(-E(x, k))`` (Grathwohl et al. 2020). Another objective learns p(x) from all
samples; to each loss of its energy this one adds

    label_weight * cross-entropy(labelled) + consistency_weight * KL(p(k | x) || p(k | x + r))
        + entropy_weight * H(p(k | x))

where ``r``, of norm ``radius``, changes the prediction most: virtual adversarial training (Miyato
et al. 2018, eq. 5 to 8).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

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
from ebm_dist.energies import frozen, is_classifier
from ebm_dist.errors import ConfigError
from ebm_dist.objectives import (
    Batch,
    Objective,
    ObjectiveConfig,
    StepContext,
    Turn,
    Wrapped,
    WrappedConfig,
)
from ebm_dist.samplers import Bounds, Kernel


@section
class Config(WrappedConfig):
    unsupervised: Any = plugin("objectives")
    """The objective that learns p(x)."""
    unsupervised_weight: NonNegative = 1.0
    """Weight of its loss; 0: only the classifier learns, for comparison."""
    label_weight: NonNegative = 1.0
    """Weight of the cross-entropy of the labelled samples."""
    label_batch: PositiveInt = 256
    """Labelled samples of each step; at most all of them."""
    label_temperature: Positive = 1.0
    """Temperature T of ``p(k | x) = softmax(-E(x, k) / T)``."""
    consistency_weight: NonNegative = 0.0
    """Weight of the divergence between predictions at a sample and close to it."""
    radius: Positive = 0.3
    """Euclidean norm of the change ``r`` of a sample."""
    probe: Positive = 1e-2
    """Norm of the random step from which ``r`` is computed (xi)."""
    entropy_weight: NonNegative = 0.0
    """Weight of the entropy of predictions at samples without a label."""
    label_ramp: Probability = 0.0
    """Share of the training over which ``consistency_weight`` and ``entropy_weight`` rise linearly
    from 0."""

    @property
    def inner(self) -> ObjectiveConfig:
        return cast(ObjectiveConfig, self.unsupervised)

    @property
    def conditional(self) -> bool:
        return False

    @property
    def follows_length(self) -> bool:
        return self.label_ramp > 0 or self.inner.follows_length

    def check(self, params: Params) -> None:
        if not is_classifier(params):
            raise Mismatch(
                "energy.name",
                "semi-supervised learning needs one output for each class; use classifier",
            )
        if self.inner.label_temperature is not None:
            raise Mismatch(
                "objective.unsupervised", "must learn p(x) alone; drop label_temperature"
            )
        WrappedConfig.check(self, params)  # super() does not work in a dataclass with slots


class SemiSupervised(Wrapped):
    """The players are those of the unsupervised objective."""

    def __init__(self, config: Config, inner: Objective, num_steps: int) -> None:
        super().__init__(inner)
        self.config, self.num_steps = config, num_steps

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        if context.labelled is None:
            raise ConfigError(
                "objective: semi-supervised learning needs samples with labels; use dataset"
                " few_labels"
            )
        yield from super().turns(batch, context)

    def with_more(self, turn: Turn, batch: Batch, context: StepContext) -> Turn:
        """Add the loss of the labels."""
        config, x, labelled = self.config, batch.x, context.labelled
        assert labelled is not None
        num_classes = int(labelled.y.max()) + 1
        order = torch.randperm(
            len(labelled.x), generator=context.stream("labels"), device=x.device
        )[: config.label_batch]
        x_labelled, y = labelled.x[order], labelled.y[order]
        x_near = x[:0]
        if config.consistency_weight:
            x_near = x + self._adversary(x, num_classes, context)
        sizes = [len(x_labelled), len(x), len(x_near)]
        logits = self._logits(
            context.players["energy"], torch.cat([x_labelled, x, x_near]), num_classes
        )
        logits_labelled, logits_data, logits_near = logits.split(sizes)
        cross_entropy = F.cross_entropy(logits_labelled, y)
        probabilities = logits_data.softmax(dim=1)
        entropy = -(probabilities * logits_data.log_softmax(dim=1)).sum(dim=1).mean()
        ramp = (
            min(1.0, (context.step + 1) / (config.label_ramp * self.num_steps))
            if config.label_ramp
            else 1.0
        )
        loss = (
            config.unsupervised_weight * turn.loss
            + config.label_weight * cross_entropy
            + ramp * config.entropy_weight * entropy
        )
        metrics = {
            "cross_entropy": cross_entropy,
            "label_accuracy": (logits_labelled.argmax(dim=1) == y).float().mean(),
            "label_entropy": entropy,
            # log(num_classes) where the mean prediction is uniform, less where classes dominate
            "class_entropy": torch.special.entr(probabilities.mean(dim=0)).sum(),
        }
        if config.consistency_weight:
            divergence = _divergence(logits_data.detach(), logits_near)
            loss = loss + ramp * config.consistency_weight * divergence
            metrics["label_divergence"] = divergence
        return turn._replace(loss=loss, metrics=turn.metrics | metrics)

    def _logits(self, energy: Callable[..., Any], x: Tensor, num_classes: int) -> Tensor:
        """``(B, num_classes)``"""
        y = torch.arange(num_classes, device=x.device).expand(len(x), num_classes)
        logits: Tensor = -energy(x, y) / self.config.label_temperature
        return logits

    def _adversary(self, x: Tensor, num_classes: int, context: StepContext) -> Tensor:
        """Return ``r (B, *shape)``, by one power iteration (Miyato et al. 2018, section 3.3)."""
        step = torch.randn(x.shape, generator=context.stream("consistency"), device=x.device)
        with frozen(self.players["energy"]) as energy:
            with torch.no_grad():
                logits = self._logits(energy, x, num_classes)
            step = _of_norm(step, self.config.probe).requires_grad_()
            (gradient,) = torch.autograd.grad(
                _divergence(logits, self._logits(energy, x + step, num_classes)), step
            )
        return _of_norm(gradient, self.config.radius)


def _divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Mean ``KL(p || q)`` of logits ``(B, num_classes)``, a scalar."""
    log_p, log_q = logits_p.log_softmax(dim=1), logits_q.log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def _of_norm(x: Tensor, norm: float) -> Tensor:
    lengths: Tensor = x.flatten(1).norm(dim=1).clamp(min=1e-30)
    return norm * x / lengths.view(-1, *[1] * (x.dim() - 1))


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    config: Config = params.objective
    inner = module_of(config.inner).build(
        config.inner_params(params), networks=networks, kernel=kernel, bounds=bounds
    )
    return SemiSupervised(config, inner, params.train.num_steps)
