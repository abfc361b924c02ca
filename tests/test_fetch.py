"""Downloads against a server in this process that cuts the line, ignores Range, or sends the wrong length or bytes."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from posetutor.data.coco import COCO_FILES, fetch, fetch_coco

BODY = bytes(range(256)) * 4000  # 1 024 000 bytes
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag, self.ranges = BODY, '"v1"', True
        self.cuts = []  # bytes after which to cut each connection in turn; None = whole
        self.status = []  # status to answer with, in turn, before serving
        self.length = None  # a false Content-Length; "none" leaves it out
        self.delay = 0.0
        self.requests = []  # Range header of every request

    def handle_error(self, request, client_address):
        pass  # the client hanging up is part of the tests

    def url(self, name="data.bin"):
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append(asked)
        if server.status:
            self.send_error(server.status.pop(0))
            return
        body = server.body[self.path] if isinstance(server.body, dict) else server.body
        start = int(asked[6:-1]) if asked and server.ranges else 0
        if self.headers.get("If-Range") not in (None, server.etag):
            start = 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if server.length != "none":
            self.send_header("Content-Length", str(len(body) - start if server.length is None else server.length))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        data = body[start:] if cut is None else body[start : start + cut]
        for k in range(0, len(data), 50_000):
            self.wfile.write(data[k : k + 50_000])
            self.wfile.flush()
            time.sleep(server.delay)
        self.close_connection = True


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def get(server, path, **options):
    return fetch(server.url(), path, **{"progress": False, "wait": 0.001, "timeout": 5, **options})


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_whole_file_and_second_call(server, tmp_path):
    seen = []
    path = get(server, tmp_path / "sub" / "data.bin", sha256=SHA.upper(), size=len(BODY), progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == BODY and names(path.parent) == ["data.bin"]
    assert seen[-1] == (len(BODY), len(BODY)) and seen == sorted(seen)
    assert get(server, path, sha256=SHA) == path and len(server.requests) == 1  # checked, not fetched again


def test_cut_connection_is_continued(server, tmp_path):
    server.cuts = [300_000, 1, 500_000]
    assert get(server, tmp_path / "d", sha256=SHA).read_bytes() == BODY
    assert server.requests == [None, "bytes=300000-", "bytes=300001-", "bytes=800001-"] and names(tmp_path) == ["d"]


def test_server_without_range_starts_again(server, tmp_path):
    server.ranges, server.cuts = False, [300_000, 200_000]
    assert get(server, tmp_path / "d").read_bytes() == BODY
    assert len(server.requests) == 3


def test_server_that_dies_leaves_only_a_partial_file(server, tmp_path):
    server.cuts = [400_000] + [0] * 50
    with pytest.raises(ConnectionError, match="400000 bytes are kept in d.partial"):
        get(server, tmp_path / "d", retries=2)
    assert len(server.requests) == 4 and not (tmp_path / "d").exists() and (tmp_path / "d.partial").stat().st_size == 400_000
    server.cuts = []
    assert get(server, tmp_path / "d", sha256=SHA).read_bytes() == BODY
    assert server.requests[-1] == "bytes=400000-" and names(tmp_path) == ["d"]


def test_file_changed_on_the_server_is_not_glued(server, tmp_path):
    server.cuts = [400_000] + [0] * 3
    with pytest.raises(ConnectionError):
        get(server, tmp_path / "d", retries=1)
    server.body, server.etag, server.cuts = BODY[::-1], '"v2"', []
    assert get(server, tmp_path / "d").read_bytes() == BODY[::-1]


def test_stale_partial_without_version_mark_is_caught_by_the_checksum(server, tmp_path):
    server.etag = None
    (tmp_path / "d.partial").write_bytes(b"x" * 1000)
    assert get(server, tmp_path / "d", sha256=SHA).read_bytes() == BODY  # glued once, refused, fetched from the start
    assert server.requests == ["bytes=1000-", None]


def test_complete_or_too_long_partial(server, tmp_path):
    (tmp_path / "d.partial").write_bytes(BODY)
    assert get(server, tmp_path / "d", sha256=SHA).read_bytes() == BODY  # answered with 416: nothing was missing
    (tmp_path / "e.partial").write_bytes(BODY + b"more")
    assert get(server, tmp_path / "e", sha256=SHA).read_bytes() == BODY


def test_wrong_bytes_are_thrown_away(server, tmp_path):
    server.body = BODY[:-1] + b"!"
    with pytest.raises(ValueError, match="sha256 .* expected"):
        get(server, tmp_path / "d", sha256=SHA)
    assert names(tmp_path) == []


def test_the_first_digits_of_the_checksum_are_enough(server, tmp_path):
    assert get(server, tmp_path / "d", sha256=SHA[:8].upper()).read_bytes() == BODY
    with pytest.raises(ValueError, match="expected one that starts with 00000000; move it away"):
        get(server, tmp_path / "d", sha256="0" * 8)
    with pytest.raises(ValueError, match="first 8 or more"):
        get(server, tmp_path / "e", sha256=SHA[:7])


def test_a_page_in_place_of_the_file_is_called_one(server, tmp_path):
    server.body = b"\n <!DOCTYPE html><title>Sign in</title>"
    with pytest.raises(ValueError, match="it is a web page"):
        get(server, tmp_path / "d", sha256=SHA[:12])
    assert names(tmp_path) == []


def test_wrong_length_is_refused_before_the_download(server, tmp_path):
    with pytest.raises(ValueError, match="1024001 bytes .* offers 1024000"):
        get(server, tmp_path / "d", size=len(BODY) + 1)
    assert names(tmp_path) == []


def test_content_length_that_promises_too_much(server, tmp_path):
    server.length, server.ranges = len(BODY) + 5, False
    with pytest.raises(ConnectionError):
        get(server, tmp_path / "d", retries=1)
    assert not (tmp_path / "d").exists()


def test_content_length_that_promises_too_little(server, tmp_path):
    server.length = 1000
    with pytest.raises(ValueError, match="sha256"):
        get(server, tmp_path / "d", sha256=SHA)
    with pytest.raises(ValueError, match="offers 1000"):
        get(server, tmp_path / "d", size=len(BODY))
    assert names(tmp_path) == []


def test_no_length_at_all(server, tmp_path):
    server.length = "none"
    with pytest.raises(ValueError, match="give size="):
        get(server, tmp_path / "d")
    assert names(tmp_path) == []
    assert get(server, tmp_path / "d", size=len(BODY)).read_bytes() == BODY


def test_status_codes(server, tmp_path):
    server.status = [503, 429]
    assert get(server, tmp_path / "d").read_bytes() == BODY
    server.status = [404]
    with pytest.raises(FileNotFoundError, match="HTTP 404"):
        get(server, tmp_path / "e")
    server.status = [403]
    with pytest.raises(ConnectionError, match="HTTP 403"):
        get(server, tmp_path / "e")
    server.status = [500] * 9
    with pytest.raises(ConnectionError, match="HTTP 500, 3 times"):
        get(server, tmp_path / "e", retries=2)


def test_refused_arguments(server, tmp_path):
    (tmp_path / "there").write_bytes(b"other")
    for call, text in (
        (lambda: fetch("file:///etc/hosts", tmp_path / "d"), "http://"),
        (lambda: get(server, tmp_path / "d", sha256="abc"), "64 hexadecimal"),
        (lambda: get(server, tmp_path / "there", sha256=SHA), "move it away"),
        (lambda: get(server, tmp_path / "there", size=6), "5 bytes, expected 6"),
        (lambda: get(server, tmp_path), "is a folder"),
        (lambda: get(server, tmp_path / "d", timeout=0), "timeout"),
        (lambda: fetch_coco(tmp_path, "test2017"), "val2017, train2017"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    assert server.requests == [] and (tmp_path / "there").read_bytes() == b"other"


def test_nobody_listens(tmp_path):
    with pytest.raises(ConnectionError, match="2 times in a row"):
        fetch("http://127.0.0.1:9/x", tmp_path / "d", retries=1, wait=0.001, progress=False)
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_download_leaves_nothing_that_looks_finished(server, tmp_path):
    server.delay = 0.05
    code = "import sys; from posetutor.data.coco import fetch; fetch(sys.argv[1], sys.argv[2], progress=False)"
    child = subprocess.Popen([sys.executable, "-c", code, server.url(), str(tmp_path / "d")])
    for _ in range(2000):
        if (tmp_path / "d.partial").exists() and (tmp_path / "d.partial").stat().st_size:
            break
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    kept = (tmp_path / "d.partial").stat().st_size
    assert not (tmp_path / "d").exists() and 0 < kept < len(BODY)
    server.delay = 0.0
    assert get(server, tmp_path / "d", sha256=SHA).read_bytes() == BODY
    assert server.requests[-1] == f"bytes={kept}-"


def test_progress_line(server, tmp_path, capsys):
    get(server, tmp_path / "d", progress=True)
    text = capsys.readouterr().err
    assert text.startswith("\rd: ") and "100.0 % of 1.0 MB" in text and text.count("\n") == 1


def archive(entries):
    store = io.BytesIO()
    with zipfile.ZipFile(store, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return store.getvalue()


def coco_server(server, pictures):
    people = {"images": [], "annotations": [], "categories": []}
    marks = archive({"annotations/person_keypoints_val2017.json": json.dumps(people), "annotations/captions_val2017.json": "{}"})
    server.body = {"/pictures.zip": pictures, "/marks.zip": marks}
    return {
        "val2017": (server.url("pictures.zip"), len(pictures), hashlib.sha256(pictures).hexdigest()),
        "annotations": (server.url("marks.zip"), None, hashlib.sha256(marks).hexdigest()),
    }


def test_fetch_coco(server, tmp_path):
    files = coco_server(server, archive({"val2017/1.jpg": b"one", "val2017/2.jpg": b"two"}))
    json_path, images = fetch_coco(tmp_path, progress=False, files=files)
    assert names(tmp_path) == ["annotations", "val2017"] and names(images) == ["1.jpg", "2.jpg"] and names(json_path.parent) == [json_path.name]
    assert json.loads(json_path.read_text())["images"] == []
    fetch_coco(tmp_path, progress=False, files=files)
    assert len(server.requests) == 2  # nothing fetched again
    with pytest.raises(ValueError, match="val2017, got 'train2017'"):
        fetch_coco(tmp_path, "train2017", files=files)


def test_fetch_coco_unpacks_all_or_nothing(server, tmp_path):
    files = coco_server(server, archive({"other/1.jpg": b"one"}))
    with pytest.raises(ValueError, match="holds no val2017"):
        fetch_coco(tmp_path, progress=False, files=files)
    assert not (tmp_path / "val2017").exists()
    files = coco_server(server, archive({"val2017/../../evil.txt": b"x"}))
    with pytest.raises(ValueError, match="unsafe"):
        fetch_coco(tmp_path / "b", progress=False, files=files)
    assert not (tmp_path / "evil.txt").exists() and not (tmp_path / "b" / "val2017").exists()


def test_official_table_is_complete():
    for url, size, sha256 in COCO_FILES.values():
        assert url.startswith("http://images.cocodataset.org/") and size > 10**8 and len(sha256) == 64
