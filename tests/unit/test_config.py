import contextlib
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebm_dist import config
from ebm_dist.errors import ConfigError
from tests.helpers import ROOT, values

GOOD = (ROOT / "params.yaml").read_text()
WITHOUT_SEARCH = GOOD.partition("\ntune:")[0]  # its space has keys of some plugins


def refused(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert "Traceback" not in message
    return message.removeprefix(str(path))


RECIPES = [
    path
    for path in sorted((ROOT / "pipelines/recipes").glob("*.yaml"))
    if path.name not in ("dvc.yaml", "rows.yaml")
]


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *RECIPES], ids=lambda p: p.stem)
def test_every_parameter_file_loads_and_comes_back(path):
    params = config.load(path)
    again = config.from_values(params.as_dict(), path)
    assert again == params
    assert again.digest() == params.digest()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "step_size: 0.02",
            "step_sizes: 0.02",
            r":\d+: sampler\.step_sizes: unknown key; did you mean 'step_size'\?",
        ),
        (
            "step_size: 0.02",
            "step_size: -1",
            r":\d+: sampler\.step_size: .*greater than 0, found -1",
        ),
        ("step_size: 0.02", "step_size: .nan", r":\d+: sampler\.step_size: .*finite"),
        (
            "step_size: 0.02",
            "step_size: fast",
            r":\d+: sampler\.step_size: .*valid number, found 'fast'",
        ),
        (
            "step_size: 0.02",
            "step_size: '0.02'",
            r":\d+: sampler\.step_size: .*valid number, found '0.02'",
        ),
        (
            "seed: 0",
            "seed: 0\nsampller: {}",
            r":\d+: sampller: unknown key; did you mean 'sampler'\?",
        ),
        ("seed: 0", "seed: 1.5", r":\d+: seed: .*integer"),
        (
            "name: langevin",
            "name: langevine",
            r":\d+: sampler\.name: no 'langevine' .*did you mean 'langevin'\?",
        ),
        ("name: langevin", "name: os", r"sampler\.name: no 'os'"),
        ("name: langevin", "name: ../config", r"sampler\.name: no '../config'"),
        (
            "name: langevin,",
            "",
            r"sampler: a name is needed; one of ancestral, dmala, gibbs, gibbs_with_gradients, hmc, langevin",
        ),
        ("num_shards: 4", "num_shards: 3", r":\d+: train\.num_shards: 3 is no power of 2"),
        ("batch_size: 128", "batch_size: 130", r":\d+: train\.batch_size: 130 is not divisible"),
        (
            "workers: 2",
            "workers: 5",
            r":\d+: cluster\.workers: 5 workers cannot share train.num_shards = 4",
        ),
        (
            "capacity: 2048",
            "capacity: 2047",
            r":\d+: replay\.capacity: must be a multiple of train\.num_shards = 4 .*found 2047",
        ),
        (
            "data_noise: 0.1}",
            "start: noise, augment_prob: 0.1}",
            r":\d+: objective\.augment_prob: chains start at noise",
        ),
        (
            "data_noise: 0.1}",
            "chain_labels: data}",
            r":\d+: objective\.chain_labels: only a conditional energy has labels",
        ),
        (
            "data_noise: 0.1}",
            "entropy_weight: 0.1}",
            r":\d+: objective\.entropy_weight: is part of the term",
        ),
        (
            "data_noise: 0.1}",
            "start: noise, burn_in: 1}",
            r":\d+: objective\.burn_in: chains that start at noise have no age",
        ),
        (
            "data_noise: 0.1}\n\nreplay: {",
            "burn_in: 4}\nreplay: {max_age: 4, ",
            r":\d+: objective\.burn_in: must be below replay\.max_age = 4, found 4",
        ),
        ("reduce: ordered", "reduce: fast", r":\d+: train\.reduce: .*'ordered' or 'ddp'"),
        (
            "metric: samples.fid",
            "metric: sample.fid",
            r":\d+: register\.gates\.0\.metric: no suite 'sample'",
        ),
        (
            "at_most: 2.5",
            "at_most: 2.5, at_leas: 1",
            r":\d+: register\.gates\.0\.at_leas: unknown key; did you mean 'at_least'\?",
        ),
        (
            "metric: samples.fid_clf_over_gaussian",
            "metric: samples.fid_clf_over_floor",
            r":\d+: register\.gates\.1\.metric: a second gate on samples\.fid_clf_over_floor; give",
        ),
        (
            "metric: samples.fid_clf_over_floor",
            "metric: samples",
            r":\d+: register\.gates\.0\.metric: expected samples\.<metric>, found 'samples'",
        ),
        (", at_most: 2.5", "", r":\d+: register\.gates\.0: a gate needs at_least or at_most"),
        (
            "  gates:",
            "  model: models:/ebm\n  gates:",
            r":\d+: register\.model: expected letters, digits, '.', '_' and '-', .*found 'models:/ebm'",
        ),
        ("seed: 0", "seed: 0\nseed: 1", r":\d+: seed: key given twice"),
        ("seed: 0", "seed: &a 0\ntrain: *a", r"aliases \(\*name\) are not allowed"),
        ("seed: 0", "seed: !!python/object/apply:os.getcwd []", r":\d+: "),
        ("seed: 0", "seed: [", r":\d+: not valid YAML"),
        ("seed: 0", "seed:\t- 0\n\tx", r":\d+: not valid YAML"),
        (
            "histogram: {}",
            "histogramm: {}",
            r"evaluation\.histogramm\.name: no 'histogramm' .*did you mean 'histogram'\?",
        ),
    ],
)
def test_one_clear_message_with_file_line_and_key(tmp_path, old, new, expected):
    assert old in GOOD
    assert re.search(expected, refused(tmp_path, GOOD.replace(old, new, 1)))


def test_a_message_has_its_fix_apart(tmp_path):
    (tmp_path / "params.yaml").write_text(GOOD.replace("capacity: 2048", "capacity: 2047"))
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / "params.yaml")
    assert caught.value.fix == "change one of these three values"
    assert str(caught.value) == f"{caught.value.what}; {caught.value.fix}"


def test_a_key_given_twice_in_an_entry_of_a_list(tmp_path):
    text = GOOD.replace("at_most: 2.5", "at_most: 2.5, at_most: 3")
    assert re.match(r":\d+: register\.gates\.0\.at_most: key given twice", refused(tmp_path, text))


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
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_the_bytes_our_error(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        config.load(path)


def test_the_seed_of_a_replicate_replaces_the_file_s():
    assert config.load(ROOT / "params.yaml", seed=5).seed == 5


def test_digest_is_of_meaning_not_of_text(tmp_path):
    plain = config.load(ROOT / "params.yaml")
    (tmp_path / "p.yaml").write_text(
        "# a comment\n" + GOOD.replace("1.0e-3", "0.001").replace("seed: 0", "seed:  0")
    )
    assert config.load(tmp_path / "p.yaml").digest() == plain.digest()
    assert config.load(ROOT / "params.yaml", seed=1).digest() != plain.digest()


def test_every_setting_has_a_help_text():
    lines = list(config.reference())
    for key, text in pairwise(lines):
        if key.startswith("  ") and not key.startswith("   "):
            assert text.startswith("      ") and len(text.strip()) > 10, f"no docstring under {key}"


class TestSettings:
    """Lines of ``ebm-dist settings``."""

    def test_of_one_section_are_a_part_of_all(self):
        lines = list(config.reference())
        train = list(config.reference("train"))
        assert train[0] == "train:" and any(line.startswith("  batch_size (int") for line in train)
        assert sum(not line.startswith(" ") for line in train) == 1
        start = lines.index("train:")
        assert lines[start : start + len(train)] == train

    def test_of_one_plugin_are_a_part_of_its_section(self):
        samplers, mala = list(config.reference("sampler")), list(config.reference("sampler.mala"))
        assert mala[0] == "sampler: {name: mala}" and any("step_size" in line for line in mala)
        assert [line for line in samplers if not line.startswith(" ")] == [
            f"sampler: {{name: {name}}}" for name in config.plugins("ebm_dist.samplers")
        ]
        assert set(mala) <= set(samplers)

    def test_of_a_nested_plugin_are_listed_once(self):
        titles = Counter(line for line in config.reference() if not line.startswith(" "))
        assert titles["objective.generator: {name: flow}"] == 1
        assert max(titles.values()) == 1

    @pytest.mark.parametrize(
        ("section", "fix"),
        [
            ("trian", "did you mean 'train'?"),
            ("sampler.malla", "did you mean 'sampler.mala'?"),
            ("", "use one of "),
        ],
    )
    def test_of_an_unknown_section_are_refused(self, section, fix):
        with pytest.raises(ConfigError, match=f"{section}: no such section") as caught:
            list(config.reference(section))
        assert caught.value.fix.startswith(fix)


class TestRenamedSections:
    OLD = GOOD.replace("comparison_datasets:", "others:")

    def test_the_old_name_is_accepted_with_one_warning(self, tmp_path, caplog):
        assert config.RENAMED == {"others": "comparison_datasets"}
        path = tmp_path / "params.yaml"
        path.write_text(self.OLD)
        line = next(
            i for i, text in enumerate(self.OLD.splitlines(), 1) if text.startswith("others:")
        )
        assert config.load(path) == config.load(ROOT / "params.yaml")
        (warning,) = caplog.messages
        assert (
            warning
            == f"{path}:{line}: others: this section has a new name; write 'comparison_datasets'"
        )

    def test_both_names_are_refused(self, tmp_path):
        message = refused(tmp_path, self.OLD + "\ncomparison_datasets: {}\n")
        assert re.match(
            r":\d+: others: old name of 'comparison_datasets', which is there too; keep only one",
            message,
        )

    def test_errors_have_the_line_of_the_old_name(self, tmp_path):
        text = self.OLD.replace("photos: {name: photos}", "photos: {name: fotos}")
        line = next(i for i, row in enumerate(text.splitlines(), 1) if "fotos" in row)
        assert refused(tmp_path, text).startswith(
            f":{line}: comparison_datasets.photos.name: no 'fotos'"
        )

    def test_the_old_name_in_settings_of_an_old_run(self, caplog):
        saved = config.load(ROOT / "params.yaml").as_dict()
        params = config.from_values(saved, Path("new"))
        saved["others"] = saved.pop("comparison_datasets")
        assert config.from_values(saved, Path("old")) == params
        assert len(caplog.messages) == 1


def test_the_number_of_seeds(tmp_path):
    assert config.load(ROOT / "params.yaml").num_seeds == 1
    assert config.load(ROOT / "pipelines/recipes/digits.yaml").num_seeds == 3
    assert re.match(
        r":\d+: num_seeds: .*greater than or equal to 1, found 0",
        refused(tmp_path, GOOD + "\nnum_seeds: 0\n"),
    )


class TestDerivedFiles:
    """A file with the key ``base``."""

    @pytest.fixture
    def derive(self, tmp_path):
        """Write ``derived.yaml`` over a copy of params.yaml, and return its path."""

        def write(text: str, base: str = GOOD) -> Path:
            (tmp_path / "base.yaml").write_text(base)
            path = tmp_path / "derived.yaml"
            path.write_text("base: base.yaml\n" + text)
            return path

        return write

    def error(self, path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            config.load(path)
        return str(caught.value).replace(f"{path.parent}/", "")

    def line(self, text: str, part: str) -> int:
        return next(i for i, row in enumerate(text.splitlines(), 1) if part in row)

    def test_alone_it_means_what_the_base_means(self, derive):
        assert config.load(derive("")) == config.load(ROOT / "params.yaml")
        assert config.load(derive(""), seed=7).seed == 7

    def test_keys_of_the_same_plugin_are_merged(self, derive):
        base = config.load(ROOT / "params.yaml")
        params = config.load(
            derive(
                "seed: 3\nsampler: {step_size: 0.5}\nobjective: {name: contrastive_divergence, burn_in: 2}\n"
            )
        )
        assert params.seed == 3
        assert (params.sampler.step_size, params.sampler.noise_scale) == (
            0.5,
            base.sampler.noise_scale,
        )
        assert (params.objective.burn_in, params.objective.energy_penalty) == (
            2,
            base.objective.energy_penalty,
        )
        assert params.train == base.train

    def test_another_plugin_replaces_the_section(self, derive):
        params = config.load(derive("sampler: {name: mala, step_size: 0.5}\n", WITHOUT_SEARCH))
        assert config.plugin_name(params.sampler) == "mala"
        assert params.sampler.num_steps == type(params.sampler)(step_size=0.5).num_steps != 10

    def test_nested_plugins_too(self, derive):
        base = WITHOUT_SEARCH.replace(
            "{name: contrastive_divergence, energy_penalty: 0.01, data_noise: 0.1}",
            "{name: meg, gradient_penalty: 0.3, generator: {name: mlp, latent_size: 5, hidden: [7]}}",
        )
        same = config.load(derive("objective: {generator: {latent_size: 6}}\n", base)).objective
        assert (same.gradient_penalty, same.generator.latent_size, same.generator.hidden) == (
            0.3,
            6,
            (7,),
        )
        other = config.load(derive("objective: {generator: {name: dcgan}}\n", base)).objective
        assert (other.gradient_penalty, config.plugin_name(other.generator)) == (0.3, "dcgan")

    def test_lists_are_replaced(self, derive):
        params = config.load(
            derive(
                "register: {gates: [{metric: ood.uniform.auroc, at_least: 0.5}]}\n",
                WITHOUT_SEARCH.replace("  gates:", "  limits: few digits\n  gates:"),
            )
        )
        assert len(params.register.gates) == 1 and params.register.limits == "few digits"

    def test_evaluation_and_comparison_datasets_are_always_replaced(self, derive):
        params = config.load(
            derive(
                "evaluation: {samples: {num_samples: 50}}\ncomparison_datasets: {}\nregister: {gates: []}\n"
            )
        )
        assert list(params.evaluation) == ["samples"] and params.comparison_datasets == {}
        assert params.evaluation["samples"].num_samples == 50
        assert params.evaluation["samples"].num_steps != 500  # a default again, not the base's

    def test_the_old_name_of_a_section_replaces_too(self, derive, caplog):
        params = config.load(derive("others: {}\n"))
        assert params.comparison_datasets == {} and len(caplog.messages) == 1

    def test_errors_name_the_file_that_has_the_key(self, derive):
        text = "\nsampler: {step_size: -1}\n"
        assert self.error(derive(text)).startswith("derived.yaml:3: sampler.step_size: ")
        base = GOOD.replace("step_size: 0.02", "step_size: -1")
        line = self.line(base, "step_size: -1")
        assert self.error(derive("seed: 1\n", base)).startswith(
            f"base.yaml:{line}: sampler.step_size: "
        )

    def test_errors_between_sections_name_the_file_of_the_key_to_change(self, derive):
        line = self.line(GOOD, "capacity: 2048")
        assert self.error(derive("train: {num_shards: 16, batch_size: 4096}\n")).startswith(
            f"base.yaml:{line}: replay.capacity: "
        )
        assert self.error(derive("replay: {capacity: 2047}\n")).startswith(
            "derived.yaml:2: replay.capacity: "
        )

    def test_no_error_names_a_line_that_was_replaced(self, derive):
        text = "register: {gates: [{metric: samples.fid}, {at_most: 1}]}\n"
        assert self.error(derive(text)).startswith(
            "derived.yaml:2: register.gates.1.metric: missing; set a value"
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "base: none.yaml",
                "derived.yaml:1: base: no file none.yaml; give a path relative to this file",
            ),
            ("base: 3", "derived.yaml:1: base: expected the path of a parameter file, found 3"),
            ("base:", "derived.yaml:1: base: expected the path of a parameter file, found None"),
            (
                "seed: 0\nbase: middle.yaml",
                "derived.yaml:2: base: middle.yaml has a base itself; name that one",
            ),
            ("base: derived.yaml", "derived.yaml:1: base: derived.yaml has a base itself"),
        ],
    )
    def test_a_base_that_is_not_a_complete_file_is_refused(self, derive, text, message):
        path = derive("")
        path.with_name("middle.yaml").write_text("base: base.yaml\n")
        path.write_text(text + "\n")
        assert self.error(path).startswith(message)

    def test_the_values_of_one_file_are_those_that_it_has(self, derive):
        path = derive("seed: 3\n")
        assert config.read_one(path)[0] == {"base": "base.yaml", "seed": 3}
        values, lines = config.read(path)
        assert "base" not in values and values["seed"] == 3
        assert lines[("seed",)] == (path, 2) and lines[("sampler", "name")][0] == path.with_name(
            "base.yaml"
        )


@pytest.fixture(scope="module")
def validator():
    schema = config.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


class TestSchema:
    """The JSON schema for editors."""

    @pytest.mark.parametrize("path", [ROOT / "params.yaml", *RECIPES], ids=lambda p: p.stem)
    def test_every_parameter_file_is_valid(self, validator, path):
        validator.validate(config.read_one(path)[0])
        validator.validate(config.load(path).as_dict())

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("sampler: {", "sampller: {"),
            ("step_size: 0.02", "step_sizes: 0.02"),
            ("batch_size: 128", "batchsize: 128"),
            ("at_most: 2.5", "at_mots: 2.5"),
            ("histogram: {}", "histogramm: {}"),
            ("samples: {num_samples", "samples: {num_sample"),
            ("photos: {name: photos}", "photos: {nam: photos}"),
            ("data_noise: 0.1}", "data_nois: 0.1}"),
            ("{log: [1.0e-4, 1.0]}", "{lug: [1.0e-4, 1.0]}"),
        ],
    )
    def test_a_misspelt_key_is_refused(self, validator, tmp_path, old, new):
        assert old in GOOD
        (tmp_path / "params.yaml").write_text(GOOD.replace(old, new, 1))
        assert not validator.is_valid(config.read_one(tmp_path / "params.yaml")[0])

    @pytest.mark.parametrize(
        "section",
        [
            {"sampler": {"name": "langevine"}},
            {"sampler": {"name": "langevin", "temperature": 1.0}},  # a key of another sampler
            {"sampler": {"step_size": 0.1}},
            {"seed": "zero"},
            {"num_seeds": 0},
            {"train": {"reduce": "fast"}},
            {"replay": {"reinit_prob": 1.5}},
            {"objective": {"name": "meg", "generator": {"name": "mlp", "latent": 3}}},
            {"energy": {"name": "band_power", "network": {"name": "mlp", "hiden": [3]}}},
        ],
    )
    def test_a_wrong_value_is_refused(self, validator, section):
        assert not validator.is_valid(config.read_one(ROOT / "params.yaml")[0] | section)

    def test_a_derived_file_may_leave_out_names(self, validator):
        derived = {
            "base": "digits.yaml",
            "sampler": {"step_size": 0.1},
            "objective": {"generator": {"latent_size": 3}},
        }
        validator.validate(derived)
        assert not validator.is_valid(
            {key: value for key, value in derived.items() if key != "base"}
        )
        assert not validator.is_valid(derived | {"sampler": {"step_sizes": 0.1}})

    def test_the_old_name_of_a_section_is_deprecated(self, validator):
        assert validator.schema["properties"]["others"]["deprecated"]
        values = config.read_one(ROOT / "params.yaml")[0]
        validator.validate(values | {"others": values["comparison_datasets"]})

    def test_every_setting_has_its_help_text(self, validator):
        keys = validator.schema["$defs"]["ebm_dist.samplers.mala"]["properties"]
        assert (
            keys["name"] == {"const": "mala"}
            and keys["step_size"]["description"] == "Factor of the score."
        )


def test_only_the_config_of_a_plugin_has_a_name():
    params = config.load(ROOT / "params.yaml")
    assert config.plugin_name(params.sampler) == "langevin"
    values = params.as_dict("tune", "register", "evaluation")
    assert "name" not in values["tune"]["space"]["sampler.step_size"]
    assert "name" not in values["register"]["gates"][0]
    assert values["evaluation"]["ood"]["name"] == "ood"


@pytest.mark.parametrize(
    "name",
    ["../../x", "..", ".", "", "a/b", "/tmp/x", "~x", "-rf", ".hidden", "a b", "a\\b", "a\nb", "a:b", "ä", "x\0"],
)  # fmt: skip
def test_a_name_that_becomes_a_folder_is_plain(name):
    sets = {name: {"name": "photos"}}
    for sections in (
        {"comparison_datasets": sets},
        {"others": sets},
        {"evaluation": {name: {"name": "samples"}}},
    ):
        with pytest.raises(ConfigError, match="becomes the name of a folder; use letters, digits"):
            config.from_values(values() | sections, Path("file"))
    with pytest.raises(ConfigError, match=r"register\.model: .*letters, digits"):
        config.from_values(values() | {"register": {"model": name}}, Path("file"))


def test_a_comparison_set_does_not_take_the_place_of_the_training_data():
    sections = values() | {"comparison_datasets": {"dataset": {"name": "photos"}}}
    with pytest.raises(ConfigError, match="training data's folder"):
        config.from_values(sections, Path("file"))
    sections["comparison_datasets"] = {"photos-2.1_b": {"name": "photos"}}
    assert list(config.from_values(sections, Path("file")).comparison_datasets) == ["photos-2.1_b"]


def test_reading_a_file_imports_no_slow_library():
    """Each stage and each worker reads one, with all its plugins."""
    script = (
        "import sys; from ebm_dist import config; config.load('params.yaml');"
        "print([name for name in ('sklearn', 'scipy.stats', 'mlflow', 'ray') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
