"""Mode counts of stacked digits (Metz et al. 2017, section 3.3.2; Kumar et al. 2019, section 4.2).

A classifier of single digits reads each channel; the mode is the number that the channels spell.
The suite reports the number of modes hit and KL(shares || uniform) in nats. Both depend on the
number of samples, so the references have as many: an exactly uniform generator, and random test
newly stacked digits, which hit the modes unevenly too.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ebm_dist.config import PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.errors import ConfigError
from ebm_dist.evaluation import Needs, Report, Subject, check_finite
from ebm_dist.metrics import features
from ebm_dist.models import latent
from ebm_dist.report import figures
from ebm_dist.rng import numpy_stream

_PART = 26000  # images per batch


@section
class Config:
    samples_per_mode: PositiveInt = 26
    """Images per mode: 26,000 for a thousand modes."""
    num_steps: PositiveInt = 5
    """Steps of the chains in latent space."""


def check(config: Config, needs: Needs) -> None:
    needs.generator()
    needs.images()
    needs.split("test")
    if needs.classifier_data().num_classes ** needs.data.shape[0] != needs.data.num_classes:
        raise needs.error(
            "needs images with a digit in each channel, and a classifier of single digits",
            "set dataset.num_channels and features.dataset, or leave this suite out",
        )


def evaluate(config: Config, subject: Subject) -> Report:
    classifier, num_modes = subject.classifier, subject.data.num_classes
    if classifier is None or classifier.classes.out_features ** subject.data.shape[0] != num_modes:
        raise ConfigError(
            "evaluation.modes: needs stacked digits (dataset.num_channels) and a classifier "
            "of single digits (features.dataset)"
        )
    count = config.samples_per_mode * num_modes
    shares: dict[str, npt.NDArray[np.float64]] = {}
    for name, num_steps in {"generator": 0, "generator, chains": config.num_steps}.items():
        total, acceptance = np.zeros(num_modes), 0.0
        for start in range(0, count, _PART):
            drawn = latent.draw(
                subject.model, min(_PART, count - start), f"modes/{start}", num_steps=num_steps
            )
            check_finite(drawn.x, f"evaluation.modes: samples of the {name}")
            total += np.bincount(number(read_digits(classifier, drawn.x)), minlength=num_modes)
            acceptance += drawn.acceptance_rate * len(drawn.x) / count
        shares[name] = total / count
    digits = read_digits(classifier, shards.read_split(subject.data, "test")[0])
    stacked = numpy_stream(0, "modes/test digits").choice(digits.ravel(), (count, digits.shape[1]))
    shares["test digits"] = np.bincount(number(stacked), minlength=num_modes) / count
    generator = numpy_stream(0, "modes/uniform")
    shares["exactly uniform"] = (
        generator.multinomial(count, np.full(num_modes, 1 / num_modes)) / count
    )
    rows: list[dict[str, Any]] = [
        {"samples": name, **class_balance(share)} for name, share in shares.items()
    ]
    plain, after_chains, of_digits, floor = (
        {k: v for k, v in row.items() if k != "samples"} for row in rows
    )
    metrics = {"num_modes": float(num_modes), "num_samples": float(count), **plain}
    metrics |= {
        "chains": after_chains | {"acceptance_rate": acceptance},
        "test_digits": of_digits,
        "uniform": floor,
    }
    images = latent.draw(subject.model, 100, "modes/0").x.numpy()
    sheets = {
        "samples.png": figures.image_grid(
            images[:, :3], 10, "Samples of the generator: one digit each in red, green and blue"
        )
    }
    return Report(metrics, {"modes": rows}, sheets)


def read_digits(classifier: features.Classifier, x: Tensor) -> npt.NDArray[np.int64]:
    """Return the digits ``(n, k)`` in the channels of ``x (n, k, h, w)``."""
    return np.stack(
        [
            features.classify(classifier, channel[:, None]).probabilities.argmax(axis=1)
            for channel in x.unbind(dim=1)
        ],
        axis=1,
    )


def number(digits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the numbers ``(n,)`` that digits ``(n, k)`` spell; the first is that of the ones."""
    spelt: npt.NDArray[np.int64] = digits @ 10 ** np.arange(digits.shape[1])
    return spelt


def class_balance(shares: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return the number of modes with samples, and KL(shares || uniform) in nats."""
    present = shares[shares > 0]
    return {
        "modes": float(len(present)),
        "kl": float((present * np.log(present * len(shares))).sum()),
    }
