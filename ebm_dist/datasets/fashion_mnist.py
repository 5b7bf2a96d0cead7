"""Fashion-MNIST: 60,000 + 10,000 images of clothes, 28x28 pixels (Xiao, Rasul & Vollgraf 2017).

Its files have the same names as those of MNIST, so they are in the sub-folder ``fashion-mnist``.
"""

from ebm_dist.config import PositiveInt, section
from ebm_dist.datasets import Dataset
from ebm_dist.datasets._download import RawFile, load_idx

_URL = "https://fashion-mnist.s3.eu-central-1.amazonaws.com/"
_FILES = {
    "train_images": RawFile(
        "fashion-mnist/train-images-idx3-ubyte.gz",
        _URL + "train-images-idx3-ubyte.gz",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    ),
    "train_labels": RawFile(
        "fashion-mnist/train-labels-idx1-ubyte.gz",
        _URL + "train-labels-idx1-ubyte.gz",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    "test_images": RawFile(
        "fashion-mnist/t10k-images-idx3-ubyte.gz",
        _URL + "t10k-images-idx3-ubyte.gz",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    ),
    "test_labels": RawFile(
        "fashion-mnist/t10k-labels-idx1-ubyte.gz",
        _URL + "t10k-labels-idx1-ubyte.gz",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}
_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@section
class Config:
    num_val: PositiveInt = 5000
    """Training images held out for choosing settings."""


def load(config: Config) -> Dataset:
    data = load_idx(
        _FILES, config.num_val, "fashion_mnist/val", "Fashion-MNIST (Xiao, Rasul & Vollgraf 2017)"
    )
    return data._replace(class_names=_CLASSES)
