"""Generated bad inputs of every kind: our error every time, nothing else raised, no hang.

5,000 of them in the slow layer (``pytest -m slow tests/security``), a twentieth in the fast one. Each is a valid input with something
changed; changes that leave it valid do not count.
"""

import copy
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ebm_dist import config, models
from ebm_dist.data import shards
from ebm_dist.errors import CheckpointError, ConfigError, DataError
from ebm_dist.training import checkpoint
from tests import helpers
from tests.helpers import ROOT, Silent

COUNTS = {
    "configs": 1500,
    "texts": 500,
    "indexes": 1000,
    "tars": 500,
    "manifests": 500,
    "checkpoints": 500,
    "cards": 250,
    "requests": 250,
}
assert sum(COUNTS.values()) == 5000
LAYERS = [
    pytest.param(20, id="some"),
    pytest.param(1, id="all", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        [
            "../x",
            "os",
            "pipe:touch mark",
            "langevin",
            "1e400",
            "",
            "\u202e",
            "__import__('os')",
            -1,
            0,
            2**63,
        ]
    ),
)
junk = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value, path=()):
    """The path of everything inside a value."""
    yield path
    for key, entry in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from places(entry, (*path, key))


@st.composite
def changed(draw, value):
    """A deep copy with one or two places replaced, removed, renamed or added."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from([place for place in places(value) if place] or [("x",)]))
        owner = value
        for key in path:
            owner = owner[key]
        how = draw(st.sampled_from(["replace", "remove", "rename", "add"]))
        if how == "replace" or not isinstance(owner, dict):
            owner[last] = draw(junk)
        elif how == "remove":
            del owner[last]
        elif how == "rename":
            owner[draw(st.text(max_size=8))] = owner.pop(last)
        else:
            owner[draw(st.text(max_size=8))] = draw(junk)
    return value


@st.composite
def bytes_changed(draw, content):
    """Cut off, flipped, filled or replaced bytes."""
    content = bytearray(content)
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    how = draw(st.sampled_from(["cut", "flip", "fill", "replace", "insert"]))
    if how == "cut":
        del content[at:]
    elif how == "flip" and content:
        content[at] ^= draw(st.integers(1, 255))
    elif how == "fill":
        content[at : at + 64] = bytes([draw(st.integers(0, 255))]) * len(content[at : at + 64])
    elif how == "replace":
        return draw(st.binary(max_size=200))
    else:
        content[at:at] = draw(st.binary(min_size=1, max_size=20))
    return bytes(content)


def reject(kind, share, strategy, read, *allowed):
    """So many inputs are rejected, each with an EbmError; hypothesis looks for others where one is accepted."""

    @settings(
        max_examples=COUNTS[kind] // share,
        deadline=5000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(value):
        try:
            read(value)
        except allowed as error:
            assert str(error)  # noqa: PT017
        else:
            assume(False)

    one()


@pytest.mark.parametrize("share", LAYERS)
def test_settings(share, tmp_path):
    base = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())

    def read(values):
        with (tmp_path / "params.yaml").open("w") as out:
            json.dump(values, out, allow_nan=False) if share else None
        config.load(tmp_path / "params.yaml")

    finite = changed(base).filter(
        lambda v: "NaN" not in json.dumps(v) and "Infinity" not in json.dumps(v)
    )
    reject("configs", share, finite, read, ConfigError)


@pytest.mark.parametrize("share", LAYERS)
def test_settings_that_are_not_even_yaml(share, tmp_path):
    text = (ROOT / "params.yaml").read_bytes()

    def read(content):
        (tmp_path / "params.yaml").write_bytes(content)
        config.load(tmp_path / "params.yaml")

    reject("texts", share, bytes_changed(text), read, ConfigError)


@pytest.fixture(scope="module")
def small_data(digits_data, tmp_path_factory):
    """A data set of two tars a split, quick to read."""
    folder = tmp_path_factory.mktemp("small") / "dataset"
    shutil.copytree(digits_data, folder)
    index = json.loads((folder / "index.json").read_text())
    index["splits"] = {"test": index["splits"]["test"][:2]}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def read_all(folder):
    index = shards.read_index(folder)
    shards.verify(index)
    shards.read_split(index, "test")


@pytest.mark.parametrize("share", LAYERS)
def test_indexes(share, small_data):
    path = small_data / "index.json"
    whole = path.read_text()

    def read(values):
        try:
            path.write_text(json.dumps(values))
            read_all(small_data)
        finally:
            path.write_text(whole)

    reject("indexes", share, changed(json.loads(whole)), read, DataError)


@pytest.mark.parametrize("share", LAYERS)
def test_tars_whose_hash_is_right(share, small_data):
    """Changed bytes with an index that agrees: what is inside is foreign all the same."""
    index = json.loads((small_data / "index.json").read_text())
    entry = index["splits"]["test"][0]
    whole = (small_data / entry["file"]).read_bytes()
    heads = [
        (place[0], place[0] + 128) for pack in entry["packs"] for place in (pack["x"], pack["y"])
    ]

    def read(content):
        changed_index = copy.deepcopy(index)
        changed_index["splits"]["test"][0] |= {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }
        try:
            (small_data / entry["file"]).write_bytes(content)
            (small_data / "index.json").write_text(json.dumps(changed_index))
            read_all(small_data)
        finally:
            (small_data / entry["file"]).write_bytes(whole)
            (small_data / "index.json").write_text(json.dumps(index))

    @st.composite
    def in_a_head(draw):
        low, high = draw(st.sampled_from(heads))
        return whole[:low] + draw(bytes_changed(whole[low:high])) + whole[high:]

    reject("tars", share, in_a_head() | bytes_changed(whole), read, DataError)


@pytest.fixture(scope="module")
def run(digits_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = helpers.build(helpers.params(train={"num_steps": 1}), digits_data)
    trainer.fit(folder, Silent())
    return folder, trainer


@pytest.mark.parametrize("share", LAYERS)
def test_manifests(share, run):
    folder = checkpoint.latest(run[0])
    path = folder / checkpoint.MANIFEST
    whole = path.read_text()

    def read(values):
        try:
            path.write_text(json.dumps(values))
            checkpoint.verify(folder, "digest")
        finally:
            path.write_text(whole)

    reject("manifests", share, changed(json.loads(whole)), read, CheckpointError)


@pytest.mark.parametrize("share", LAYERS)
def test_checkpoints_whose_hashes_are_right(share, run):
    folder, trainer = run
    newest = checkpoint.latest(folder)
    manifest = json.loads((newest / checkpoint.MANIFEST).read_text())
    names = sorted(manifest["files"])

    def read(given_):
        name, content = given_
        whole = (newest / name).read_bytes()
        listed = manifest["files"] | {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        }
        try:
            (newest / name).write_bytes(content)
            (newest / checkpoint.MANIFEST).write_text(json.dumps(manifest | {"files": listed}))
            trainer.restore(folder)
        finally:
            (newest / name).write_bytes(whole)
            (newest / checkpoint.MANIFEST).write_text(json.dumps(manifest))

    @st.composite
    def files_changed(draw):
        name = draw(st.sampled_from(names))
        content = (newest / name).read_bytes()
        head = (
            8 + int.from_bytes(content[:8], "little")
            if name.endswith("safetensors")
            else len(content)
        )
        return name, draw(bytes_changed(content[:head])) + content[head:]

    reject("checkpoints", share, files_changed(), read, CheckpointError, DataError)


@pytest.fixture(scope="module")
def exported(run, digits_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    helpers.export(run[0], folder, helpers.params(train={"num_steps": 1}), digits_data)
    return folder


@pytest.mark.parametrize("share", LAYERS)
def test_models(share, exported):
    path = exported / "model.json"
    whole = path.read_text()

    def read(values):
        try:
            path.write_text(json.dumps(values))
            models.load(exported)
        finally:
            path.write_text(whole)

    reject("cards", share, changed(json.loads(whole)), read, DataError, ConfigError)


@pytest.mark.parametrize("share", LAYERS)
def test_requests_to_the_served_model(share, exported):
    """What the server turns into status 400."""
    import mlflow

    from ebm_dist.registry.serving import EnergyService

    class Context:
        artifacts = {"model": str(exported)}
        model_config = None

    service = EnergyService()
    service.load_context(Context())

    def read(request):
        try:
            service.predict(None, request)
        except mlflow.exceptions.MlflowException as refused:
            assert refused.get_http_status_code() == 400  # noqa: PT017
            raise

    arrays = st.lists(st.integers(0, 9), max_size=5).map(lambda shape: np.zeros(shape, np.float32))
    wrong = st.sampled_from([np.nan, np.inf, -np.inf]).map(lambda v: np.full((1, 1, 8, 8), v))
    objects = st.sampled_from(
        [np.array(["x"]), np.array([object()]), b"\x80\x04K\x01.", torch.zeros(2)]
    )
    reject(
        "requests", share, junk | arrays | wrong | objects, read, mlflow.exceptions.MlflowException
    )
