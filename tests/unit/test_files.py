"""Fetching published files: what is half, wrong or an error page is refused and removed."""

import gzip
import hashlib
import http.server
import threading

import numpy as np
import pytest

from ebm_dist.datasets._download import RawFile, fetch, read_idx
from ebm_dist.errors import DataError

CONTENT = gzip.compress(b"\0\0\x08\x01" + (5).to_bytes(4, "big") + bytes(range(5)), mtime=0)


@pytest.fixture
def server():
    """A real server on a port of the system's choice; ``answers[path]`` is (status, declared length, body)."""
    answers = {"/good.gz": (200, None, CONTENT)}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, length, body = answers.get(self.path, (404, None, b"gone"))
            self.send_response(status)
            self.send_header("Content-Length", str(length or len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield answers, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(autouse=True)
def no_own_data(monkeypatch):
    monkeypatch.delenv("EBM_DATA_DIR", raising=False)


def raw(url: str, name: str = "good.gz") -> RawFile:
    return RawFile(name, f"{url}/{name}", hashlib.sha256(CONTENT).hexdigest())


def test_downloaded_once_then_taken_from_the_cache(server, tmp_path):
    answers, url = server
    path = fetch(raw(url), tmp_path)
    assert path.read_bytes() == CONTENT
    answers.clear()
    assert fetch(raw(url), tmp_path) == path
    assert read_idx(path).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((200, None, b"<html>Please log in</html>"), "not the published file"),
        ((200, None, CONTENT[:-3]), "not the published file"),
        ((200, len(CONTENT), CONTENT[:-3]), "not the published file|download failed"),
        ((200, None, b""), "not the published file"),
        ((503, None, b"busy"), "download failed"),
    ],
)
def test_what_is_not_the_file_is_refused_and_removed(server, tmp_path, answer, expected):
    answers, url = server
    answers["/good.gz"] = answer
    with pytest.raises(DataError, match=expected) as caught:
        fetch(raw(url), tmp_path)
    assert "EBM_DATA_DIR" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_in_the_cache_is_fetched_again(server, tmp_path):
    (tmp_path / "good.gz").write_bytes(b"half")
    assert fetch(raw(server[1]), tmp_path).read_bytes() == CONTENT


def test_the_user_s_own_folder_comes_first_and_is_never_changed(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    (own / "good.gz").write_bytes(CONTENT)
    monkeypatch.setenv("EBM_DATA_DIR", str(own))
    assert fetch(raw("http://127.0.0.1:9"), tmp_path / "cache") == own / "good.gz"
    (own / "good.gz").write_bytes(b"wrong")
    with pytest.raises(DataError, match=r"own/good\.gz: not the published file"):
        fetch(raw("http://127.0.0.1:9"), tmp_path / "cache")
    assert (own / "good.gz").read_bytes() == b"wrong"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        CONTENT[:20],
        gzip.compress(b"\0\0\x0d\x01xxxx", mtime=0),
        gzip.compress(b"", mtime=0),
    ],
)
def test_what_is_no_idx_file_is_refused(tmp_path, content):
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(DataError, match="not a gzipped IDX file"):
        read_idx(tmp_path / "x.gz")


def test_idx_shape(tmp_path):
    body = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 3, 1)) + bytes(range(6))
    (tmp_path / "x.gz").write_bytes(gzip.compress(body))
    np.testing.assert_array_equal(read_idx(tmp_path / "x.gz"), np.arange(6).reshape(2, 3, 1))
