import contextlib
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebm_dist import config
from ebm_dist.errors import ConfigError
from tests.helpers import ROOT, values

GOOD = (ROOT / "params.yaml").read_text()


def refused(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert "Traceback" not in message
    return message.removeprefix(str(path))


RECIPES = [path for path in sorted((ROOT / "pipelines/recipes").glob("*.yaml")) if path.name not in ("dvc.yaml", "rows.yaml")]


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *RECIPES], ids=lambda p: p.stem)
def test_every_parameter_file_loads_and_comes_back(path):
    params = config.load(path)
    again = config.from_values(params.as_dict(), path)
    assert again == params
    assert again.digest() == params.digest()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("step_size: 0.02", "step_sizes: 0.02", r":\d+: sampler\.step_sizes: unknown key; did you mean 'step_size'\?"),
        ("step_size: 0.02", "step_size: -1", r":\d+: sampler\.step_size: .*greater than 0, found -1"),
        ("step_size: 0.02", "step_size: .nan", r":\d+: sampler\.step_size: .*finite"),
        ("step_size: 0.02", "step_size: fast", r":\d+: sampler\.step_size: .*valid number, found 'fast'"),
        ("step_size: 0.02", "step_size: '0.02'", r":\d+: sampler\.step_size: .*valid number, found '0.02'"),
        ("seed: 0", "seed: 0\nsampller: {}", r":\d+: sampller: unknown key; did you mean 'sampler'\?"),
        ("seed: 0", "seed: 1.5", r":\d+: seed: .*integer"),
        ("name: langevin", "name: langevine", r":\d+: sampler\.name: no 'langevine' .*did you mean 'langevin'\?"),
        ("name: langevin", "name: os", r"sampler\.name: no 'os'"),
        ("name: langevin", "name: ../config", r"sampler\.name: no '../config'"),
        ("name: langevin,", "", r"sampler: a name is needed; one of gibbs, hmc, langevin"),
        ("num_shards: 4", "num_shards: 3", r":\d+: train\.num_shards: 3 does not divide"),
        ("batch_size: 128", "batch_size: 130", r":\d+: train\.batch_size: 130 is not divisible"),
        ("workers: 2", "workers: 5", r":\d+: cluster\.workers: 5 workers cannot share train.num_shards = 4"),
        ("capacity: 2048", "capacity: 2047", r":\d+: replay\.capacity: 2047 chains cannot be dealt"),
        ("data_noise: 0.1}", "start: noise, augment_prob: 0.1}", r":\d+: objective\.augment_prob: chains start at noise"),
        ("data_noise: 0.1}", "chain_labels: data}", r":\d+: objective\.chain_labels: only a conditional energy has labels"),
        ("data_noise: 0.1}", "entropy_weight: 0.1}", r":\d+: objective\.entropy_weight: is part of the term"),
        ("data_noise: 0.1}", "start: noise, burn_in: 1}", r":\d+: objective\.burn_in: chains that start at noise have no age"),
        (
            "data_noise: 0.1}\n\nreplay: {",
            "burn_in: 4}\nreplay: {max_age: 4, ",
            r":\d+: objective\.burn_in: must be below replay\.max_age = 4, found 4",
        ),
        ("reduce: ordered", "reduce: fast", r":\d+: train\.reduce: .*'ordered' or 'ddp'"),
        ("metric: samples.fid", "metric: sample.fid", r":\d+: register\.gates\.0\.metric: no suite 'sample'"),
        ("at_most: 2.5", "at_most: 2.5, at_leas: 1", r":\d+: register\.gates\.0\.at_leas: unknown key; did you mean 'at_least'\?"),
        ("seed: 0", "seed: 0\nseed: 1", r":\d+: seed: key given twice"),
        ("seed: 0", "seed: &a 0\ntrain: *a", r"aliases \(\*name\) are not allowed"),
        ("seed: 0", "seed: !!python/object/apply:os.getcwd []", r":\d+: "),
        ("seed: 0", "seed: [", r":\d+: not valid YAML"),
        ("seed: 0", "seed:\t- 0\n\tx", r":\d+: not valid YAML"),
        ("histogram: {}", "histogramm: {}", r"evaluation\.histogramm\.name: no 'histogramm' .*did you mean 'histogram'\?"),
    ],
)
def test_one_clear_message_with_file_line_and_key(tmp_path, old, new, expected):
    assert old in GOOD
    assert re.search(expected, refused(tmp_path, GOOD.replace(old, new, 1)))


def test_the_line_is_the_key_s_own(tmp_path):
    lines = GOOD.replace("batch_size: 128", "batch_size: 130").splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "batch_size: 130" in text)
    assert refused(tmp_path, "\n".join(lines)).startswith(f":{line}: train.batch_size")


def test_empty_huge_binary_deep_and_missing_files(tmp_path):
    assert "expected sections" in refused(tmp_path, "")
    assert "expected sections" in refused(tmp_path, "just text")
    assert "too large" in refused(tmp_path, "#" * (2 << 20))
    refused(tmp_path, b"\xff\xfe\x00seed")
    refused(tmp_path, "seed: " + "[" * 5000)
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "none.yaml")


def test_a_byte_order_mark_is_no_error(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert config.load(path) == config.load(ROOT / "params.yaml")


@given(st.dictionaries(st.text(max_size=8), st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6), max_size=4),
       st.sampled_from(["", *values()]))  # fmt: skip
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_values_our_error_or_params(noise, section):
    with contextlib.suppress(ConfigError):
        config.from_values(values() | ({section: noise} if section else noise), Path("file"))


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_bytes_our_error(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        config.load(path)


def test_the_seed_of_a_replicate_replaces_the_file_s():
    assert config.load(ROOT / "params.yaml", seed=5).seed == 5


def test_digest_is_of_meaning_not_of_text(tmp_path):
    plain = config.load(ROOT / "params.yaml")
    (tmp_path / "p.yaml").write_text("# a comment\n" + GOOD.replace("1.0e-3", "0.001").replace("seed: 0", "seed:  0"))
    assert config.load(tmp_path / "p.yaml").digest() == plain.digest()
    assert config.load(ROOT / "params.yaml", seed=1).digest() != plain.digest()


def test_every_setting_has_a_help_text():
    lines = list(config.reference())
    for key, text in pairwise(lines):
        if key.startswith("  ") and not key.startswith("   "):
            assert text.startswith("      ") and len(text.strip()) > 10, f"no docstring under {key}"
