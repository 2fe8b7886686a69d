"""Downloads from a local test server that fails in the ways that web servers do."""

import gzip
import hashlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from nanogpt_lite.data import download, sources
from nanogpt_lite.data.download import DownloadError, Resource, fetch
from nanogpt_lite.errors import ExternalError

BODY = bytes(range(256)) * 1000  # longer than several chunks
OLD = b"an older file"

Answer = Callable[[BaseHTTPRequestHandler], None]


def whole(handler: BaseHTTPRequestHandler, body: bytes = BODY, length: int | None = None, encoding: str = "") -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    if encoding:
        handler.send_header("Content-Encoding", encoding)
    handler.end_headers()
    handler.wfile.write(body)


def truncated(handler: BaseHTTPRequestHandler) -> None:
    """Announce the whole body, and close the connection in the middle of it."""
    whole(handler, BODY[:100_000], length=len(BODY))


def no_length(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(BODY)


def compressed(handler: BaseHTTPRequestHandler) -> None:
    whole(handler, gzip.compress(BODY), encoding="gzip")


def status(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


class Server:
    """Gives the planned answers in order, and records the paths of the requests."""

    def __init__(self) -> None:
        self.plan: list[Answer] = []
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                outer.plan.pop(0)(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/texts/a%20book.txt?version=1"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "RETRY_DELAY", 0)
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOGPT_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def write_cached(cache: Path, content: bytes) -> Path:
    path = cache / "book" / "a.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("hash_known", [True, False])
def test_file_is_downloaded_once_then_cached(server, cache, hash_known):
    resource = Resource(server.url, "book/a.txt", sha256(BODY) if hash_known else None)
    server.plan = [whole]
    path = fetch(resource)
    assert path == cache / "book" / "a.txt"
    assert path.read_bytes() == BODY
    assert fetch(resource) == path  # a second request would have no planned answer
    assert server.requests == ["/texts/a%20book.txt?version=1"]
    assert files_in(cache) == ["book/a.txt"]


def test_cached_file_needs_no_network(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "requests", None)  # nor the requests package
    path = write_cached(cache, OLD)
    assert fetch(Resource("http://127.0.0.1:1/", "book/a.txt", sha256(OLD))) == path


@pytest.mark.parametrize(
    "plan",
    [[status(503)], [truncated], [status(500), status(502)], [truncated, status(429)], [truncated, truncated]],
    ids=["503", "truncated", "500 502", "truncated 429", "truncated twice"],
)
def test_temporary_errors_are_retried(server, cache, plan):
    server.plan = [*plan, whole]
    assert fetch(Resource(server.url, "book/a.txt")).read_bytes() == BODY
    assert len(server.requests) == len(plan) + 1
    assert files_in(cache) == ["book/a.txt"]


@pytest.mark.parametrize("old", [None, OLD])
@pytest.mark.parametrize(
    ("plan", "n_requests", "reason"),
    [
        ([status(404)], 1, "404 Client Error"),
        ([status(403)], 1, "403 Client Error"),
        ([status(503)] * 3, 3, "503 Server Error"),
        ([truncated] * 3, 3, "IncompleteRead"),
        ([lambda handler: whole(handler, BODY[:-1])], 1, sha256(BODY[:-1])),
        ([lambda handler: whole(handler, b"")], 1, "returned an unexpected file"),
    ],
    ids=["404", "403", "503", "truncated", "other file", "empty file"],
)
def test_failed_download_leaves_the_cache_unchanged(server, cache, plan, n_requests, reason, old):
    if old:
        write_cached(cache, old)
    server.plan = list(plan)
    with pytest.raises(DownloadError, match=reason) as caught:
        fetch(Resource(server.url, "book/a.txt", sha256(BODY)), force_download=True)
    assert isinstance(caught.value, ExternalError)
    assert len(server.requests) == n_requests
    assert files_in(cache) == (["book/a.txt"] if old else [])
    assert not old or (cache / "book/a.txt").read_bytes() == old


def test_refused_connection_error_gives_reason_and_remedies(server, cache):
    server.stop()
    with pytest.raises(DownloadError) as caught:
        fetch(Resource(server.url, "book/a.txt"))
    for hint in (server.url, "refused", str(cache / "book" / "a.txt"), "`dataset='python_docs'`"):
        assert hint in str(caught.value)
    for noise in (" object at 0x", "Max retries exceeded"):
        assert noise not in str(caught.value)


def test_a_host_that_does_not_answer_is_tried_once(cache, monkeypatch):
    """As by a firewall that drops packets: each attempt would take as long as the first."""
    attempts = []

    def time_out(url: str, **options: object) -> None:
        attempts.append(url)
        raise requests.ConnectTimeout("no answer")

    monkeypatch.setattr(requests, "get", time_out)
    with pytest.raises(DownloadError, match="no answer"):
        fetch(Resource("http://192.0.2.1/a.txt", "book/a.txt"))
    assert len(attempts) == 1


def test_connection_closed_at_once_is_a_download_error(cache, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "RETRY_DELAY", 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close_connections() -> None:
            for _ in range(download.MAX_ATTEMPTS):
                listener.accept()[0].close()

        thread = threading.Thread(target=close_connections)
        thread.start()
        with pytest.raises(DownloadError, match="cannot fetch"):
            fetch(Resource(f"http://127.0.0.1:{listener.getsockname()[1]}/a.txt", "book/a.txt"))
        thread.join()


def test_damaged_cached_file_is_downloaded_again(server, cache):
    path = write_cached(cache, OLD)
    server.plan = [whole]
    assert fetch(Resource(server.url, "book/a.txt", sha256(BODY))) == path
    assert path.read_bytes() == BODY


def test_force_download_replaces_a_cached_file(server, cache):
    write_cached(cache, OLD)
    server.plan = [whole]
    assert fetch(Resource(server.url, "book/a.txt"), force_download=True).read_bytes() == BODY


@pytest.mark.parametrize(
    ("answer", "total"), [(whole, len(BODY)), (no_length, None), (compressed, None)], ids=["plain", "no length", "gzip"]
)
def test_download_progress_is_reported_in_bytes(server, cache, answer, total):
    reports: list[tuple[str, int, int | None]] = []
    server.plan = [answer]
    path = fetch(Resource(server.url, "book/a.txt", sha256(BODY)), report=lambda *report: reports.append(report))
    assert path.read_bytes() == BODY
    assert {(task, all_) for task, _, all_ in reports} == {("download", total)}
    done = [n_bytes for _, n_bytes, _ in reports]
    assert done == sorted(set(done))
    assert len(done) > 2
    assert done[-1] == len(BODY)


def test_url_is_a_source(server, cache):
    server.plan = [lambda handler: whole(handler, "Grüße\r\n".encode())]
    source = sources.find_source(server.url)
    assert "".join(source.read_chunks()) == "".join(sources.find_source(server.url).read_chunks()) == "Grüße\r\n"
    assert source.name == "a_book"
    server.plan = [lambda handler: whole(handler, b"new")]
    assert "".join(sources.find_source(server.url, force_download=True).read_chunks()) == "new"
    assert len(server.requests) == 2


def test_cache_names_of_urls_are_unique_and_safe():
    urls = [
        "http://a/x.txt",
        "http://b/x.txt",
        "http://a/x.txt?1",
        "http://a/%2e%2e%2f%2e%2e/",
        "http://a",
        "http://a/é",
    ]
    names = [download.url_resource(url).cache_name for url in urls]
    assert len(set(names)) == len(urls)
    assert [Path(name).name for name in names] == ["x.txt", "x.txt", "x.txt", "index.txt", "index.txt", "é"]
    assert not any(part.startswith(".") for name in names for part in name.split("/"))


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {"NANOGPT_LITE_CACHE": "/c"}, "/c"),
        ("linux", {"NANOGPT_LITE_CACHE": "~/c"}, "/home/me/c"),
        ("linux", {}, "/home/me/.cache/nanogpt_lite"),
        ("linux", {"XDG_CACHE_HOME": "/x", "NANOGPT_LITE_CACHE": ""}, "/x/nanogpt_lite"),
        ("darwin", {}, "/home/me/Library/Caches/nanogpt_lite"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/nanogpt_lite"),
        ("win32", {}, "/home/me/AppData/Local/nanogpt_lite"),
    ],
)
def test_cache_dir_follows_the_platform(monkeypatch, platform, environment, folder):
    for name in ("NANOGPT_LITE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", "USERPROFILE": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert download.cache_dir() == Path(folder)


def test_shakespeare_resource_is_karpathys_file():
    published = Resource(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "shakespeare_char/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    )
    assert published == sources.RESOURCES["shakespeare_char"]
