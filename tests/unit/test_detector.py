"""The anomaly detector: scikit-learn's interface, PyOD's attributes, saved without pickle."""

import copy
import json
import pickle
import re
from importlib.util import find_spec

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score

import ebm_dist as ebm
from ebm_dist.api import experts
from ebm_dist.errors import ConfigError, DataError, InputError
from tests.helpers import ROOT

COLUMNS = 4


def table(seed=0, n=400):
    """Two clusters with correlated columns."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(COLUMNS, COLUMNS))
    return (rng.normal(size=(n, COLUMNS)) + 3 * rng.integers(2, size=(n, 1))) @ mixing


def detector(**changed):
    return ebm.EnergyDetector(
        **{"hidden": (32, 32), "num_steps": 60, "contamination": 0.1, "random_state": 0} | changed
    )


@pytest.fixture(scope="module")
def fitted():
    return detector().fit(table())


def test_an_obvious_outlier_scores_below_all_inliers_and_is_predicted(fitted):
    x, far = table(), table()[:5] + 100
    assert fitted.decision_function(far).max() < fitted.decision_function(x).min()
    assert (fitted.predict(far) == -1).all() and (fitted.predict(x) == 1).mean() > 0.8


@pytest.mark.parametrize("name", experts.EXPERTS)
def test_every_expert_alone_finds_rows_far_away(name):
    x = table()
    trained = detector(experts=(name,), num_steps=20).fit(x)
    assert np.isfinite(trained.decision_scores_).all()
    assert roc_auc_score([1] * 50 + [0] * 400, -trained.score_samples(np.r_[x[:50] + 40, x])) > 0.9


def test_the_threshold_gives_the_contamination_on_training_rows(fitted):
    x = table()
    assert (fitted.predict(x) == -1).sum() == 40
    assert np.array_equal(fitted.fit_predict(x), fitted.predict(x))
    automatic = detector(contamination="auto").fit(np.concatenate([x, x[:3] + 100]))
    assert (automatic.predict(x[:3] + 100) == -1).all()
    assert 0 < (automatic.predict(x) == -1).mean() < 0.1


def test_attributes_of_pyod_have_the_other_sign(fitted):
    x = table()
    assert np.array_equal(fitted.decision_scores_, -fitted.score_samples(x))
    assert fitted.threshold_ == -fitted.offset_
    assert np.array_equal(fitted.labels_, (fitted.predict(x) == -1).astype(int))
    difference = fitted.score_samples(x) - fitted.offset_
    assert np.array_equal(fitted.decision_function(x), difference)


def test_equal_seeds_give_equal_scores(fitted):
    x = table()
    again = detector().fit(x)
    assert np.array_equal(again.score_samples(x), fitted.score_samples(x))
    other = detector(random_state=1).fit(x)
    assert not np.array_equal(other.score_samples(x), fitted.score_samples(x))


def test_the_score_of_a_row_does_not_depend_on_the_rows_beside_it(fitted):
    x = table(1, 50)
    together = fitted.score_samples(x)
    alone = np.concatenate([fitted.score_samples(row[None]) for row in x])
    np.testing.assert_allclose(alone, together, rtol=1e-10)
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_allclose(fitted.score_samples(x[order]), together[order], rtol=1e-10)


def test_units_of_columns_do_not_matter(fitted):
    x, unit, origin = table(), np.array([1e6, 1e-3, 7.0, 1.0]), np.array([0, 5.0, -1, 1e4])
    scaled = detector().fit(x * unit + origin)
    new = np.concatenate([table(1, 50), table(1, 50) * 3])
    np.testing.assert_allclose(
        scaled.score_samples(new * unit + origin), fitted.score_samples(new), rtol=1e-2, atol=1e-2
    )


def test_the_gap_between_clusters_is_abnormal_if_smoothing_leaves_it():
    """A Gaussian alone takes the gap for the most normal place."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 1)) * 0.1 + rng.choice([-1.0, 1.0], size=(600, 1))
    gap, centres = np.zeros((1, 1)), np.array([[-1.0], [1.0]])

    def depth(smoothing):
        trained = detector(experts=("denoising",), num_steps=200, smoothing=smoothing).fit(x)
        return (trained.score_samples(centres) - trained.score_samples(gap)).min()

    assert depth(0.2) > 1 > depth(1.0)


def test_far_from_all_rows_scores_go_on_falling(fitted):
    x = table()
    direction = x[0] - x.mean(axis=0)
    away = np.stack([x.mean(axis=0) + direction * distance for distance in (10, 30, 1e3, 1e6)])
    assert (np.diff(fitted.score_samples(away)) < 0).all()


def test_surprise_is_the_share_of_training_rows_with_as_much_energy():
    of_training = np.arange(100.0)
    found = experts.surprise(np.array([-5.0, 50.0, 99.0, 99.5]), of_training)
    assert found[:3] == pytest.approx(-np.log(np.array([101, 51, 2]) / 101))
    assert found[3] == pytest.approx(-np.log(1 / 101) + 0.5 / 2)  # the highest five: 0 to 4
    far = experts.surprise(np.array([99 + 2e3, 99 + 4e3]), of_training)
    assert 12 < far[0] < far[1] < 100


def test_a_row_that_equals_a_training_row_is_scored_without_it():
    x = np.array([[0.0], [1.0], [3.0], [7.0]])
    u = (x - x.mean()) / x.std()
    options = experts.Options(0.25, (8,), 10, 4, 1e-3, leaves_out_copies=True)
    nearest = experts.Distance(1)
    state, energies = nearest.fit(u, options, 0)
    apart = np.array([1.0, 1.0, 2.0, 4.0]) / x.std()
    np.testing.assert_allclose(energies, np.log(apart + state["floor"]))
    np.testing.assert_array_equal(nearest.energies(state, u, options), energies)
    kept = nearest.energies(state, u, options._replace(leaves_out_copies=False))
    np.testing.assert_allclose(kept, np.log(state["floor"]))
    twice, _ = nearest.fit(np.r_[u, u[:1]], options, 0)
    assert nearest.energies(twice, u[:1], options) == np.log(twice["floor"])


def test_the_array_of_the_caller_is_left_alone_and_constant_columns_are_no_error():
    x = np.column_stack([table(), np.full(400, 3.0)])
    before = x.copy()
    trained = detector(num_steps=20).fit(x)
    assert np.isfinite(trained.score_samples(x)).all() and np.array_equal(x, before)
    moved = x[:1] + np.array([0, 0, 0, 0, 50.0])
    assert trained.predict(moved) == -1


def test_images_are_rows_of_all_their_values():
    images = np.random.default_rng(0).normal(size=(60, 1, 3, 3))
    trained = detector(num_steps=20).fit(images)
    assert trained.n_features_in_ == 9
    flat = trained.score_samples(images.reshape(60, 9))
    assert np.array_equal(trained.score_samples(images), flat)


def test_a_saved_detector_gives_the_same_bits(tmp_path, fitted):
    x = table(1)
    fitted.save(tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
    loaded = ebm.EnergyDetector.load(tmp_path)
    assert loaded.get_params() == fitted.get_params()
    for name in ("decision_function", "predict"):
        assert np.array_equal(getattr(loaded, name)(x), getattr(fitted, name)(x))
    for name in ("decision_scores_", "labels_", "threshold_", "offset_", "n_features_in_"):
        assert np.array_equal(getattr(loaded, name), getattr(fitted, name))
    copied = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(copied.score_samples(x), fitted.score_samples(x))
    assert np.array_equal(clone(loaded).fit(table()).score_samples(x), fitted.score_samples(x))


def test_a_search_may_set_numbers_of_numpy(tmp_path):
    numbers = {"num_steps": np.int64(5), "lr": np.float32(0.25), "hidden": [np.int32(8)]}
    detector(**numbers, random_state=np.int64(3)).fit(table()).save(tmp_path)
    loaded = ebm.EnergyDetector.load(tmp_path)
    assert (loaded.num_steps, loaded.lr, loaded.hidden, loaded.random_state) == (5, 0.25, (8,), 3)


def test_altered_and_foreign_folders_are_refused(tmp_path, fitted):
    fitted.save(tmp_path)
    weights = tmp_path / "detector.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"altered"):
        ebm.EnergyDetector.load(tmp_path)
    weights.write_bytes(content)
    settings = tmp_path / "detector.json"
    for change in ({"parameters": {"hidden": [8]}}, {"offset": None}, {"feature_names": 3}):
        fitted.save(tmp_path)
        settings.write_text(json.dumps(json.loads(settings.read_text()) | change))
        with pytest.raises(DataError, match=r"not a saved detector|expected 4 names"):
            ebm.EnergyDetector.load(tmp_path)
    with pytest.raises(DataError, match=r"missing.* save the detector again"):
        ebm.EnergyDetector.load(tmp_path / "absent")


def test_names_of_columns_are_kept_and_named_in_errors(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table(), columns=["age", "height", "mass", "pulse"])
    trained = detector(num_steps=20).fit(frame)
    trained.save(tmp_path)
    loaded = ebm.EnergyDetector.load(tmp_path)
    assert loaded.feature_names_in_.tolist() == ["age", "height", "mass", "pulse"]
    frame.loc[7, "mass"] = np.nan
    for call in (detector().fit, loaded.predict):
        with pytest.raises(InputError, match=r"column 'mass' has 1 NaN or inf.* row 7.*impute"):
            call(frame)
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(frame.rename(columns={"age": "years"}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"contamination": 0.7}, r"contamination: expected a share in \(0, 0.5\].*found 0.7"),
        ({"contamination": "some"}, r"contamination: expected a share .*found 'some'"),
        ({"smoothing": -1}, "smoothing: expected a number of at least 0, found -1"),
        ({"smoothing": 0}, "smoothing: denoising needs noise, found 0"),
        ({"hidden": 8}, "hidden: expected the widths of the layers, such as"),
        ({"experts": ("nce",)}, "experts: no 'nce'; use some of neighbours, whitened"),
        ({"experts": ()}, "experts: none; use some of"),
        ({"lr": -1.0}, "lr"),
        ({"hidden": (0,)}, "hidden"),
    ],
)
def test_wrong_parameters_are_refused(changed, message):
    with pytest.raises((InputError, ConfigError), match=message):
        detector(**changed).fit(table())


def test_wrong_arrays_are_refused(fitted):
    with pytest.raises(ValueError, match="3 features, but EnergyDetector is expecting 4"):
        fitted.predict(table()[:, :3])
    x = table()
    x[[5, 9], 2] = np.inf, np.nan
    with pytest.raises(InputError, match=r"column 2 has 2 NaN or inf, the first in row 5"):
        detector().fit(x)
    with pytest.raises(InputError, match="too large"):
        detector().fit(table() * 1e306)


def test_the_page_for_users_of_pyod_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/howto/from-pyod.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    names: dict = {}
    for block in blocks:
        if "pyod" not in block or find_spec("pyod"):
            exec(block, names)
    assert roc_auc_score(names["y_test"], -names["detector"].score_samples(names["X_test"])) > 0.9


@pytest.mark.slow
def test_scikit_learn_s_checks_pass():
    """All but those that docs/howto/from-pyod.md names."""
    from sklearn.utils.estimator_checks import check_estimator

    results = check_estimator(
        ebm.EnergyDetector(hidden=(16,), num_steps=10, random_state=0), on_fail=None, on_skip=None
    )
    others = {r["check_name"]: r["exception"] for r in results if r["status"] != "passed"}
    assert len(results) > 40 and set(others) <= {"check_array_api_input"}, others
    page = (ROOT / "docs/howto/from-pyod.md").read_text()
    assert all(f"`{name}`" in page for name in others)


@pytest.mark.slow
def test_a_grid_search_in_several_processes_works():
    from sklearn.model_selection import GridSearchCV

    x = np.concatenate([table(), table(1, 40) + 20])
    y = np.r_[np.ones(400), -np.ones(40)]
    order = np.random.default_rng(0).permutation(440)
    search = GridSearchCV(detector(), {"hidden": [(8,), (16,)]}, scoring="roc_auc", n_jobs=2, cv=2)
    assert search.fit(x[order], y[order]).best_score_ > 0.9


def test_a_fit_that_fails_leaves_the_detector_as_it_was():
    x, fitted = table(), detector(num_steps=3).fit(table())
    before = fitted.score_samples(x)
    with pytest.raises(InputError, match="too large, or differ too little, to be squared"):
        fitted.fit(x * 1e200)
    np.testing.assert_array_equal(fitted.score_samples(x), before)
    new = detector(num_steps=3)
    with pytest.raises(InputError):
        new.fit(x * 1e200)
    with pytest.raises(NotFittedError):
        new.score_samples(x)


def test_the_sign_of_a_zero_makes_no_other_row():
    x = np.column_stack([table(), np.zeros(400)])
    fitted = detector(experts=("neighbours",)).fit(x)
    np.testing.assert_array_equal(
        fitted.score_samples(x * [1, 1, 1, 1, -1]), fitted.score_samples(x)
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"smoothing": 1.0},
        {"experts": ("neighbours",)},
        {"experts": ("meg",)},
        {"hidden": (16,)},
        {"num_steps": -1},
    ],
)
def test_parameters_set_after_a_fit_wait_for_the_next(fitted, changed, tmp_path):
    x, before = table(), fitted.score_samples(table())
    other = copy.deepcopy(fitted).set_params(**changed)
    np.testing.assert_array_equal(other.score_samples(x), before)
    other.save(tmp_path / "saved")
    np.testing.assert_array_equal(
        ebm.EnergyDetector.load(tmp_path / "saved").score_samples(x), before
    )


def test_a_column_that_is_constant_up_to_rounding_is_constant():
    x = table()
    x[:, 2] = np.where(np.arange(len(x)) % 2, 0.1 + 0.2, 0.3)
    fitted = detector(num_steps=3).fit(x)
    assert fitted.scale_[2] == 1
    x[:, 2] = np.float32(0.3)
    assert (fitted.predict(x) == -1).mean() < 0.15
