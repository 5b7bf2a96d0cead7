"""Who becomes champion, the log of it, and the card of each version; in a real MLflow registry on SQLite."""

import json
import shutil

import pytest

from ebm_dist import config, models
from ebm_dist.errors import DataError, RegistryError
from ebm_dist.registry import card, promotion, versions
from tests import helpers
from tests.helpers import Silent


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('database')}/mlflow.db"


@pytest.fixture(scope="module")
def mlflow(database, tmp_path_factory):
    """A registry with four versions: the first two passed their gates, the others did not."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("registry")
    client = MlflowClient(database)
    for name in ("ebm", "bare"):
        client.create_registered_model(name)
    written = ["0.9 >= 0.8 pass"]  # registered before verdicts were JSON
    for value in (0.95, 0.5):
        verdict = versions.Verdict("ood.auroc", value, ">= 0.8", value >= 0.8)
        written += promotion.gate_tags([verdict]).values()
    for number, gate in enumerate((*written, "0.5 >= 0.8 FAIL"), 1):
        client.create_model_version("ebm", str(folder))
        client.set_model_version_tag("ebm", str(number), "gate.ood.auroc", gate)
    client.create_model_version("bare", str(folder))
    return client


def test_only_versions_whose_gates_passed_become_champion_and_the_log_has_each_change(mlflow):
    assert promotion.champion(mlflow, "ebm") is None and promotion.log(mlflow, "ebm") == []
    for refused in ("3", "4"):
        with pytest.raises(
            RegistryError,
            match=rf"ebm/{refused} cannot become champion: ood\.auroc 0\.5 >= 0\.8 FAIL",
        ):
            promotion.promote(mlflow, "ebm", refused)
    with pytest.raises(RegistryError, match="bare/1 cannot become champion: it has no gates"):
        promotion.promote(mlflow, "bare", "1")
    with pytest.raises(RegistryError, match=r"no previous champion .*now: none\)"):
        promotion.roll_back(mlflow, "ebm")
    assert promotion.promote(mlflow, "ebm", "1").before is None
    with pytest.raises(RegistryError, match=r"no previous champion .*now: 1\)"):
        promotion.roll_back(mlflow, "ebm")
    assert promotion.promote(mlflow, "ebm", "1") is None  # it is already
    event = promotion.promote(mlflow, "ebm", "2")
    assert (
        (event.before, event.gates) == ("1", {"ood.auroc": "0.95 >= 0.8 pass"})
        and event.who
        and event.at
    )
    assert promotion.roll_back(mlflow, "ebm").version == "1" == promotion.champion(mlflow, "ebm")
    with pytest.raises(RegistryError, match=r"no previous champion .*now: 1\)"):
        promotion.roll_back(mlflow, "ebm")  # what it was before the first is not known
    assert [(e.before, e.version, e.why) for e in promotion.log(mlflow, "ebm")] == [
        (None, "1", "gates"),
        ("1", "2", "gates"),
        ("2", "1", "roll-back"),
    ]


def test_a_champion_that_fails_its_gates_is_demoted_and_the_one_before_can_come_back(mlflow):
    mlflow.create_registered_model("demoted")
    for number in ("1", "2"):
        mlflow.create_model_version("demoted", "file:///nothing")
        for key, text in promotion.gate_tags(
            [versions.Verdict("ood.auroc", 0.9, ">= 0.8", True)]
        ).items():
            mlflow.set_model_version_tag("demoted", number, key, text)
        promotion.promote(mlflow, "demoted", number)
    assert promotion.demote(mlflow, "demoted", "1") is None  # it is not the champion
    assert promotion.demote(mlflow, "demoted", "2").version is None
    assert promotion.champion(mlflow, "demoted") is None
    assert promotion.roll_back(mlflow, "demoted").version == "1"
    assert [(e.before, e.version, e.why) for e in promotion.log(mlflow, "demoted")] == [
        (None, "1", "gates"),
        ("1", "2", "gates"),
        ("2", None, "gates failed"),
        (None, "1", "roll-back"),
    ]


GATES = (
    versions.Gate(metric="ood.auroc", at_least=0.8),
    versions.Gate(metric="samples.fid", at_most=5.0),
)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_passes_no_gate(value):
    (verdict,) = versions.check_gates(GATES[:1], {"ood.auroc": value})
    assert (verdict.value, verdict.passes, verdict.skipped) == (None, False, "")
    assert str(verdict) == "not finite >= 0.8 FAIL"
    assert json.loads(*promotion.gate_tags([verdict]).values())["value"] is None


def test_a_gate_on_a_metric_that_the_data_cannot_have_is_skipped():
    passed, skipped = versions.check_gates(GATES, {"ood.auroc": 0.9, "samples.fidd": 1.0})
    assert passed.passes and not skipped.passes
    assert str(skipped) == (
        "<= 5 skipped: the reports have no metric samples.fid; did you mean 'samples.fidd'?"
    )
    (key, text), _ = promotion.gate_tags([skipped, passed]).items()
    assert promotion.read_gates({key: text}) == {"samples.fid": skipped}
    both = versions.Gate(metric="ood.auroc", at_least=0.8, at_most=0.85)
    (verdict,) = versions.check_gates((both,), {"ood.auroc": 0.9})
    assert str(verdict) == "0.9 >= 0.8 and <= 0.85 FAIL"


@pytest.mark.parametrize(
    ("dataset", "register", "name"),
    [
        ({"name": "digits"}, {}, "ebm-digits"),
        ({"name": "arrays", "path": "some where/my faces.npz"}, {}, "ebm-arrays-my-faces"),
        ({"name": "arrays", "path": "faces.npz"}, {"model": "other"}, "other"),
    ],
)
def test_the_name_of_the_model_follows_the_data_set_unless_the_file_names_it(
    dataset, register, name
):
    assert versions.model_name(helpers.params(dataset=dataset, register=register)) == name


def test_the_default_job_keeps_its_name():
    assert versions.model_name(config.load(helpers.ROOT / "params.yaml")) == "ebm-digits"


def test_a_verdict_is_json_and_no_text_passes_by_its_end():
    verdict = versions.Verdict("ood.auroc", 0.95, ">= 0.8", True)
    tags = promotion.gate_tags([verdict]) | {"git.commit": "0123"}
    assert json.loads(tags["gate.ood.auroc"]) == {"value": 0.95, "bound": ">= 0.8", "passes": True}
    assert (
        promotion.read_gates(tags) == {"ood.auroc": verdict} and str(verdict) == "0.95 >= 0.8 pass"
    )
    for text, expected in (
        ("0.9 >= 0.8 pass", True),  # of a version registered before
        ("0.5 >= 0.8 FAIL", False),
        ('{"value": 0.9, "bound": ">= 0.8", "passes": "pass"}', False),
        ('{"value": 0.9, "bound": ">= 0.8"}', False),
        ('{"value": 0.5, "bound": ">= 0.8 pass", "passes": false}', False),
    ):
        (gate,) = promotion.read_gates({"gate.x": text}).values()
        assert promotion.passes(gate) == expected, text


def test_what_the_registry_says_is_one_message(monkeypatch, database):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    with pytest.raises(
        RegistryError, match=r"MLflow at sqlite.*: .*nothing.* not found; see ebm-dist doctor"
    ):
        promotion.call(lambda client: promotion.log(client, "nothing"))


@pytest.fixture(scope="module")
def version(tmp_path_factory, digits_data):
    """A trained model, its reports, and what the card needs beside them."""
    folder = tmp_path_factory.mktemp("version")
    chosen = helpers.params()
    helpers.build(chosen, digits_data).fit(folder / "run", Silent())
    helpers.export(folder / "run", folder / "model", chosen, digits_data)
    (folder / "reports/ood/plots").mkdir(parents=True)
    (folder / "reports/ood/plots/roc.png").write_bytes(b"png")
    metrics = {
        "auroc": 0.9,
        "noise": {"auroc": 0.99},
        "seeds": {
            "0": {"auroc": 0.88, "noise": {"auroc": 0.98}},
            "1": {"auroc": 0.92, "noise": {"auroc": 1.0}},
        },
    }
    (folder / "reports/ood/metrics.json").write_text(json.dumps(metrics))
    (folder / "reports/train").mkdir()
    (folder / "reports/train/metrics.json").write_text(json.dumps({"energy_gap": 0.1}))
    return folder, chosen, models.load(folder / "model")


LINEAGE = {"config.digest": "abc", "hardware": "2 cores", "git.commit": "0123"}


def test_the_card_says_what_it_learnt_how_and_how_well(version):
    folder, chosen, trained = version
    verdicts = [
        versions.Verdict("ood.auroc", 0.9, ">= 0.8", True),
        versions.Verdict("ood.noise.auroc", 0.99, ">= 0.995", False),
    ]
    text = card.write("ebm-test", trained, chosen, folder / "reports", verdicts, LINEAGE)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# ebm-test", "## Headline figures", "## Limits", "## Data", "## Method", "## Sampler", "## Gates", "## Metrics",
        "## Lineage", "## How to cite", "## Pictures",
    ]  # fmt: skip
    assert (
        "`langevin`, num_steps 3, step_size 0.02, noise_scale 0.1" in text
        and "`contrastive_divergence`" in text
        and "Parameters: energy 1,9" in text
    )
    assert "| ood.noise.auroc | 0.99 | >= 0.995 | **fail** |" in text
    assert (
        "- It was evaluated by ood; nothing" in text
        and "| train.energy_gap | 0.1 | one seed |" in text
    )
    assert "| ood.auroc | 0.9 | 0.6459 to 1 |" in text  # t interval of .88 and .92
    assert (
        trained.card["data_digest"] in text
        and "`reports/ood/plots/roc.png`" in text
        and "digits" in text
    )
    assert "None are set, so it cannot become champion." in card.write(
        "ebm-test", trained, chosen, folder / "reports", [], LINEAGE
    )


def card_of(version, tmp_path, verdicts=(), **suites):
    _, params, trained = version
    for suite, metrics in suites.items():
        (tmp_path / suite / "plots").mkdir(parents=True)
        (tmp_path / suite / "plots/table.csv").write_text("a\n1\n")
        (tmp_path / suite / "metrics.json").write_text(json.dumps(metrics))
    return card.write("ebm-test", trained, params, tmp_path, verdicts, LINEAGE)


def test_the_card_lists_all_metrics_with_samples_and_gates_first(version, tmp_path):
    others = {f"metric_{i:02d}": float(i) for i in range(60)}
    text = card_of(
        version,
        tmp_path,
        [versions.Verdict("ood.metric_50", 50.0, ">= 1", True)],
        chains=others,
        ood=others,
        samples={"fid_clf": 9.0, "seeds_used": None},
        train={"energy_gap": 0.1},
    )
    rows = [line.split(" | ")[0] for line in text.splitlines() if " | one seed |" in line]
    assert rows[:3] == ["| samples.fid_clf", "| samples.seeds_used", "| ood.metric_50"]
    assert len(rows) == 123 and rows[-1] == "| train.energy_gap"
    assert "It was evaluated by chains, ood, samples; nothing" in text
    assert "None: the suites wrote tables only." in text
    short = card.shortened(text, 3000)
    assert len(short) <= 3000 and "| ood.metric_50 |" in short and "| train." not in short
    assert "## Limits" in short and "## Pictures" in short
    assert card.shortened(text, 10**6) == text


def test_headline_figures_and_limits_come_first_and_how_to_cite_is_said(version, tmp_path):
    text = card_of(
        version,
        tmp_path,
        samples={"fid_clf": 26.17, "fid_clf_floor": 18.3, "fid_clf_gaussian": 85.4},
        chains={"both": {"rhat": 2.36}},
    )
    first, second, _ = text.partition("## Headline figures\n\n")[2].split("\n", 2)
    assert first == (
        "- FID-clf of samples (lower is better): **26.17** (real images 18.3, fitted Gaussian 85.4)"
    )
    assert "R-hat" in second and "**2.36**" in second
    limits = text.partition("## Limits\n\n")[2]
    assert limits.startswith("- Its chains have not mixed: R-hat is over 1.1")
    cited = text.partition("## How to cite\n\n")[2].partition("\n\n")[0]
    assert "Du & Mordatch 2019; Hinton 2002; Tieleman 2008" in cited
    assert version[2].card["sha256"]["energy.safetensors"][:16] in cited
    assert "Alpaydin & Kaynak" in cited
    assert "## Headline figures" in card.shortened(text, 2500)


NAMES = [
    "a|b*c", "<b>", "_x_", "__a__", "`code`", "[l](http://a)", "# h", "\\", "a_b",
    "a & b", "&#35;", "&amp;", "~~s~~",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_show_in_markdown_as_typed(name):
    """By a parser of CommonMark with tables, in a paragraph, a cell and as code."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt().enable(["table", "strikethrough"])

    def texts(source):
        tokens = markdown.parse(source)
        inline = [t for token in tokens if token.type == "inline" for t in token.children]
        assert {t.type for t in inline} <= {"text", "text_special", "code_inline"}, inline
        return "".join(t.content for t in inline)

    assert texts(f"Classes: {card.escaped(name)}, end") == f"Classes: {name}, end"
    assert texts(f"| a | b |\n|---|---|\n| {card.escaped(name)} | x |") == f"ab{name}x"
    assert texts(f"- sha: {card._code(name)}") == f"sha: {name}"


def test_control_characters_of_names_are_shown(version):
    raw = version[2].card | {"class_names": ["\x1b[31m", "two\nlines", "a\u202eb"]}
    assert r"Classes: \\x1b\[31m, two lines, a\\u202eb." in card._data(raw)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"noise": {"rhat": 2.444}, "replay": {"rhat": 1.02}}, "chains.noise.rhat 2.44"),
        ({"both": {"rhat": None}}, "chains.both.rhat not finite"),
        ({"noise": {"rhat": 1.1}}, None),
        ({"seeds": {"0": {"rhat": 3.0}}, "rhat": 1.0}, None),
    ],
)
def test_the_card_says_in_words_that_chains_have_not_mixed(version, tmp_path, metrics, words):
    text = card_of(version, tmp_path, chains=metrics)
    assert ("Its chains have not mixed: R-hat is over 1.1" in text) == (words is not None)
    assert words is None or f"({words})" in text


def test_a_card_with_gaps_is_refused(version, tmp_path):
    folder, chosen, trained = version
    shutil.copytree(folder / "reports", tmp_path / "reports")
    shutil.rmtree(tmp_path / "reports/train")
    for lost, expected in (
        (
            tmp_path / "reports/ood/plots/roc.png",
            "has gaps, so nothing is published: Pictures; run 'dvc repro'",
        ),
        (tmp_path / "reports/ood/metrics.json", "Metrics, Pictures"),
    ):
        lost.unlink()
        with pytest.raises(DataError, match=expected):
            card.write("ebm-test", trained, chosen, tmp_path / "reports", [], LINEAGE)
    with pytest.raises(DataError, match="Lineage: settings digest"):
        card.write("ebm-test", trained, chosen, folder / "reports", [], {"hardware": "2 cores"})
    with pytest.raises(DataError, match="published: Data;"):
        card.write(
            "ebm-test",
            trained._replace(card=trained.card | {"source": ""}),
            chosen,
            folder / "reports",
            [],
            LINEAGE,
        )
