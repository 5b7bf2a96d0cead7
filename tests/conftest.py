import os
import signal
from pathlib import Path

import pytest  # and nothing else: xdist's first process only waits for the others


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for all fast tests; slow ones and drills need the whole machine, and few files are sooner done in one process."""
    is_all = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    return 2 if is_all and config.option.markexpr.startswith("not slow") else 0


def pytest_configure(config: pytest.Config) -> None:
    # a shell starts background jobs with SIGINT ignored, and what the tests start would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.numprocesses:
        os.environ["OMP_NUM_THREADS"] = "1"  # the workers share the cores


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared digits; tests must not change it."""
    from ebm_dist.data import shards
    from ebm_dist.datasets import digits

    folder = tmp_path_factory.mktemp("data") / "dataset"
    shards.write(folder, "digits", digits.load(digits.Config()))
    return folder


@pytest.fixture(scope="session")
def photos_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ebm_dist.data import shards
    from ebm_dist.datasets import photos

    folder = tmp_path_factory.mktemp("data") / "photos"
    shards.write(folder, "photos", photos.load(photos.Config()))
    return folder
