from pathlib import Path

import pytest

from ebm_dist.data import shards
from ebm_dist.datasets import digits, photos


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared digits; tests must not change it."""
    folder = tmp_path_factory.mktemp("data") / "dataset"
    shards.write(folder, "digits", digits.load(digits.Config()))
    return folder


@pytest.fixture(scope="session")
def photos_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    shards.write(folder, "photos", photos.load(photos.Config()))
    return folder
