"""Nothing that is read may run code: payloads of each kind leave no mark."""

import hashlib
import io
import json
import os
import pickle
import re
import tarfile

import numpy as np
import pytest
import torch

from ebm_dist import files, models, storage
from ebm_dist.data import shards
from ebm_dist.datasets import arrays
from ebm_dist.errors import DataError, EbmError
from ebm_dist.metrics import features
from ebm_dist.training import checkpoint
from tests import helpers
from tests.helpers import ROOT, Silent


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    path = tmp_path / "mark"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists(), "the payload works"
    path.rmdir()
    yield path
    assert not path.exists(), "the payload ran"


def payloads(mark):
    """The payload as a pickle, as torch.save writes it, and as a .npy and .npz of objects."""
    saved, npy, npz = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(Payload(mark), saved)
    np.save(npy, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    np.savez(npz, x=np.array([Payload(mark)], dtype=object))
    return {
        "pickle": pickle.dumps(Payload(mark)),
        "pt": saved.getvalue(),
        "npy": npy.getvalue(),
        "npz": npz.getvalue(),
    }


KINDS = ["pickle", "pt", "npy", "npz"]


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_shard(digits_data, tmp_path, mark, kind):
    """With hashes that agree, so that only the reading of it can refuse."""
    index = json.loads((digits_data / "index.json").read_text())
    entry = index["splits"]["test"][0]
    content = payloads(mark)[kind]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("000000.x.npy", "000000.y.npy", "000000.x.pyd", "000000.x.pth"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = out.getvalue()
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "num_samples": 1}
    entry["packs"] = [{"num_samples": 1, "x": [512, len(content)], "y": [512, len(content)]}]
    (tmp_path / entry["file"]).write_bytes(data)
    (tmp_path / "index.json").write_text(json.dumps(index | {"splits": {"test": [entry]}}))
    with pytest.raises(DataError, match="not a shard"):
        shards.read_split(shards.read_index(tmp_path), "test")


@pytest.mark.parametrize(
    "name",
    [
        "../../mark.tar",
        "/etc/mark.tar",
        "a/b.tar",
        "..",
        "pipe:mkdir {mark}.tar",
        "s3://x/y.tar",
        "mark",
    ],
)
def test_as_the_name_of_a_shard(digits_data, tmp_path, mark, name):
    index = json.loads((digits_data / "index.json").read_text())
    index["splits"]["test"][0]["file"] = name.format(mark=mark)
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError):
        shards.verify(shards.read_index(tmp_path))


@pytest.mark.parametrize(
    "url",
    [
        "pipe:mkdir {mark}",
        "pipe:mkdir {mark} && cat x",
        "http://169.254.169.254/x",
        "file:///etc/passwd",
        "gopher://x",
    ],
)
def test_as_an_address(mark, url):
    with pytest.raises(DataError, match=r"not supported|neither a folder"):
        storage.location(url.format(mark=mark))


@pytest.mark.parametrize("kind", ["hardlink", "symlink", "device", "huge"])
def test_a_tar_with_links_devices_or_a_false_size_is_never_unpacked(
    digits_data, tmp_path, mark, kind
):
    index = json.loads((digits_data / "index.json").read_text())
    entry = index["splits"]["test"][0]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("000000.x.npy")
        info.type = {
            "hardlink": tarfile.LNKTYPE,
            "symlink": tarfile.SYMTYPE,
            "device": tarfile.FIFOTYPE,
            "huge": tarfile.REGTYPE,
        }[kind]
        info.linkname = "/etc/passwd"
        tar.addfile(info)
    data = out.getvalue()
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "num_samples": 1}
    size = 2**50 if kind == "huge" else 1000
    entry["packs"] = [{"num_samples": 1, "x": [512, size], "y": [512, size]}]
    (tmp_path / entry["file"]).write_bytes(data)
    (tmp_path / "index.json").write_text(json.dumps(index | {"splits": {"test": [entry]}}))
    with pytest.raises(DataError):
        shards.read_split(shards.read_index(tmp_path), "test")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["index.json", entry["file"]])


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_checkpoint(digits_data, tmp_path, mark, kind):
    trainer = helpers.build(helpers.params(train={"num_steps": 1}), digits_data)
    trainer.fit(tmp_path / "run", Silent())
    folder = checkpoint.latest(tmp_path / "run")
    manifest, content = json.loads((folder / checkpoint.MANIFEST).read_text()), payloads(mark)[kind]
    for name in ("weights.safetensors", "chains-00000.safetensors", "history.json"):
        listed = manifest["files"] | {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        }
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest | {"files": listed}))
        with pytest.raises(EbmError):
            trainer.restore(tmp_path / "run")
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_model_and_in_a_classifier(digits_data, tmp_path, mark, kind):
    content = payloads(mark)[kind]
    chosen = helpers.params(train={"num_steps": 1})
    helpers.build(chosen, digits_data).fit(tmp_path / "run", Silent())
    helpers.export(tmp_path / "run", tmp_path / "model", chosen, digits_data)
    card = json.loads((tmp_path / "model/model.json").read_text())
    card["sha256"]["energy.safetensors"] = hashlib.sha256(content).hexdigest()
    (tmp_path / "model/energy.safetensors").write_bytes(content)
    (tmp_path / "model/model.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match="safetensors"):
        models.load(tmp_path / "model")
    card = {
        "shape": [1, 8, 8],
        "num_classes": 10,
        "dim": 8,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
    }
    files.write_json(tmp_path / "classifier" / features.CARD, card)
    (tmp_path / "classifier" / features.WEIGHTS).write_bytes(content)
    with pytest.raises(DataError, match="safetensors"):
        features.load(tmp_path / "classifier")


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_in_the_user_s_own_arrays(tmp_path, mark, kind):
    (tmp_path / f"x.{kind}").write_bytes(payloads(mark)[kind])
    with pytest.raises(DataError):
        arrays.load(arrays.Config(path=str(tmp_path / f"x.{kind}")))


def test_the_source_has_no_way_to_run_what_it_reads():
    forbidden = re.compile(
        r"\bpickle\.(load|dump|Unp)|(?<!safetensors\.)torch\.load\(|(?<![.\w])eval\(|\bexec\(|yaml\.load\(|shell=True|os\.system|allow_pickle=True|marshal|extractall"
    )
    allowed = {("config.py", "yaml.load("), ("lineage.py", "yaml.load(")}
    for folder in ("ebm_dist", "pipelines", "infra"):
        for path in (ROOT / folder).rglob("*.py"):
            found = [
                m.group()
                for m in forbidden.finditer(path.read_text())
                if (path.name, m.group()) not in allowed
            ]
            assert not found, f"{path}: {found}"
