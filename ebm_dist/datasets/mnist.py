"""MNIST: 60,000 + 10,000 handwritten digits of 28x28 pixels (LeCun, Bottou, Bengio & Haffner 1998)."""

from ebm_dist.config import Count, section
from ebm_dist.datasets import Dataset, load_idx
from ebm_dist.files import RawFile

_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FILES = {
    "train_images": RawFile(
        "train-images-idx3-ubyte.gz",
        _URL + "train-images-idx3-ubyte.gz",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "train_labels": RawFile(
        "train-labels-idx1-ubyte.gz",
        _URL + "train-labels-idx1-ubyte.gz",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "test_images": RawFile(
        "t10k-images-idx3-ubyte.gz",
        _URL + "t10k-images-idx3-ubyte.gz",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "test_labels": RawFile(
        "t10k-labels-idx1-ubyte.gz",
        _URL + "t10k-labels-idx1-ubyte.gz",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
}


@section
class Config:
    num_val: Count = 5000
    """Images taken from the training split for choosing settings."""


def load(config: Config) -> Dataset:
    return load_idx(_FILES, config.num_val, "mnist/val", "MNIST (LeCun, Bottou, Bengio & Haffner 1998)")
