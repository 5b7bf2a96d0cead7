"""Errors have two parts: what is wrong, and how to fix it."""

import pickle

import pytest

from ebm_dist import errors
from ebm_dist.errors import ConfigError, DataError, EbmError


def test_the_text_is_both_parts():
    failed = DataError("data/x.npz: missing", "run 'dvc repro prepare'")
    assert (failed.what, failed.fix) == ("data/x.npz: missing", "run 'dvc repro prepare'")
    assert str(failed) == "data/x.npz: missing; run 'dvc repro prepare'"


def test_one_text_has_no_fix_even_with_a_semicolon():
    failed = ConfigError("one; two")
    assert (str(failed), failed.what, failed.fix) == ("one; two", "one; two", None)


@pytest.mark.parametrize("fix", [None, "do this"])
def test_the_parts_survive_the_way_from_a_worker(fix):
    failed = pickle.loads(pickle.dumps(ConfigError("wrong", fix)))
    assert type(failed) is ConfigError
    assert (failed.what, failed.fix, str(failed)) == ("wrong", fix, str(ConfigError("wrong", fix)))


def test_every_error_has_an_exit_code():
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, EbmError)
    ]
    assert len(kinds) > 5 and all(0 < kind.exit_code < 256 for kind in kinds)
