"""A server that stands before another one: what it passes on, and what it says if that one does not answer."""

import http.client
import json
import re
import signal
import threading
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import wait_for
from served_app import client_of, health, run_dir, server, server_process

import nanogpt_lite as ng
from nanogpt_lite.config.options import is_remote_address
from nanogpt_lite.server import serving

__all__ = ["run_dir", "server"]  # fixtures

pytest.importorskip("uvicorn", reason="needs uvicorn (the extra serve)")
httpx = pytest.importorskip("httpx", reason="needs httpx (the extra serve)")
remote = pytest.importorskip("nanogpt_lite.server.remote", reason="needs starlette (the extra serve)")

PROMPT = "9 green"


@contextmanager
def client_before(address, **options):
    """A client of a server that stands before the one at an address."""
    with client_of(None, remote=address, **options) as client:
        yield client


@pytest.fixture
def client(server):
    with client_before(server) as client:
        yield client


@contextmanager
def stand_in(answer):
    """The address of a server that answers to any request as `answer(handler)` does, and the requests it got."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append(self)
            answer(self)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(status, content, content_type="application/json", **headers):
    """An answer of a `stand_in`."""

    def answer(handler):
        handler.send_response(status)
        handler.send_header("Content-Type", content_type)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def message(response):
    return response.json()["error"]["message"]


def test_text_is_that_of_the_server_behind_it_whole_and_streamed(client, run_dir):
    expected = ng.sample(run_dir, device="cpu", threads=1, start=PROMPT, seed=7, max_new_tokens=60)[0]
    fields = {"prompt": PROMPT, "seed": 7, "max_tokens": 60}
    answer = client.post("/v1/completions", json=fields)
    assert PROMPT + answer.json()["choices"][0]["text"] == expected
    streamed = client.post("/v1/completions", json={**fields, "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *events, end = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    assert PROMPT + "".join(json.loads(event)["choices"][0]["text"] for event in events) == expected
    assert end == "[DONE]"


def test_runs_readings_and_errors_are_those_of_the_server_behind_it(client, run_dir):
    name = run_dir.name
    assert client.get("/v1/models").json()["data"][0]["id"] == name
    assert client.get(f"/v1/models/{name}").json()["id"] == name
    reading = client.post("/api/inspect", json={"text": PROMPT}).json()
    assert [token["token"] for token in reading["tokens"]] == list(PROMPT)
    assert client.get("/health").json()["status"] == "ok"
    unknown = client.post("/v1/completions", json={"prompt": "é"})
    assert (unknown.status_code, "U+00E9" in message(unknown)) == (400, True)
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/v1/no/such/path").status_code == 404
    assert client.head("/").status_code == 200
    assert 'src="/page/main.js"' in client.get("/").text


def test_access_is_checked_before_anything_is_passed_on():
    with stand_in(says(200, b"{}")) as (address, asked), client_before(address, token="secret") as client:
        for path in ("/v1/models", "/health", "/api/runs"):
            assert client.get(path).status_code == 401
        assert client.get("/").status_code == 200  # the page, which asks for the token
        assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 421
        assert client.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
        assert asked == []
        assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert asked[0].headers.get("Authorization") is None, "this server's own token stays here"


def test_key_of_modals_proxy_is_added_and_the_token_of_the_server_behind_is_kept(monkeypatch):
    monkeypatch.setenv(remote.ID_VARIABLE, "wk-1")
    monkeypatch.setenv(remote.SECRET_VARIABLE, "ws-2")
    with stand_in(says(200, b"{}")) as (address, asked), client_before(address) as client:
        headers = {"Authorization": "Bearer theirs", "Cookie": "a=b", "Modal-Key": "forged"}
        assert client.post("/v1/completions?a=%26&a=2&b", json={"prompt": "x"}, headers=headers).json() == {}
    (request,) = asked
    assert (request.command, request.path, request.body) == ("POST", "/v1/completions?a=%26&a=2&b", b'{"prompt":"x"}')
    assert request.headers.get_all("Modal-Key") == ["wk-1"]
    assert request.headers.get_all("Modal-Secret") == ["ws-2"]
    assert request.headers["Authorization"] == "Bearer theirs"
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Host"] == address.removeprefix("http://")
    assert "Cookie" not in request.headers


def raw_status(local, path):
    """The status of an answer to a path that is sent as it is: other clients would change it."""
    connection = http.client.HTTPConnection(local.removeprefix("http://"), timeout=30)
    connection.putrequest("GET", path)
    connection.endheaders()
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def test_no_path_leads_to_another_server_or_above_its_address():
    with (
        stand_in(says(200, b"{}")) as (address, asked),
        server_process(None, "--remote", f"{address}/below") as (local, _),
    ):
        for path in (
            "/%2F@evil.example/",
            "//evil.example/",
            "/@evil.example",
            "@evil.example",
            "/other",
            "/favicon.ico",
        ):
            assert raw_status(local, path) == 404, path
        for path in ("/v1/../../x", "/v1/..%2f..%2fx", "/v1/%2e%2e/x", "/v1/./x", "/v1/..\\x", "%2Fv1/@evil.example"):
            assert raw_status(local, path) in (400, 404), path
        assert asked == []
        for path in ("/v1/%3fa%23b", "/v1/@evil.example", "/v1//evil.example", "/v1/a%2Fb?x=..", "/api/runs"):
            assert raw_status(local, path) == 200
            assert asked.pop().path == f"/below{path}"


@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [
        (
            says(401, b"modal-http: missing credentials", "text/plain"),
            401,
            "set MODAL_PROXY_TOKEN_ID and MODAL_PROXY_T",
        ),
        (says(404, b"modal-http: app not found", "text/plain"), 404, "app not found.*is it deployed"),
        (says(502, b"", "text/html"), 502, "status 502.*is it deployed"),
        (says(303, b"", Location="https://evil.example/"), 504, "took longer than a request to Modal may; ask again"),
        (says(308, b"", Location="https://www.example.org"), 502, "sends requests on to https://www.example.org"),
        (says(429, b'{"error": {"message": "wait"}}', Retry_After="2"), 429, "^wait$"),
        (lambda handler: handler.connection.close(), 502, "cannot be asked .*is it running"),
    ],
)
def test_answer_that_is_not_the_servers_own_says_what_to_do(answer, status, expected):
    with stand_in(answer) as (address, _), client_before(address) as client:
        response = client.get("/v1/models/x")
        assert response.status_code == status
        assert response.headers.get("retry-after") == ("2" if status == 429 else None)
        error = message(response)
    assert re.search(expected, error), error


def test_an_error_that_may_quote_the_request_is_not_shown(client, monkeypatch):
    @asynccontextmanager
    async def fail(*_, **__):
        raise httpx.LocalProtocolError("Illegal header value b'ws-secret'")
        yield

    monkeypatch.setattr(httpx.AsyncClient, "stream", fail)
    response = client.get("/v1/models")
    assert (response.status_code, "LocalProtocolError" in message(response)) == (502, True)
    assert "ws-secret" not in response.text


def test_server_that_is_not_there_is_an_error():
    with stand_in(says(200, b"{}")) as (address, _):
        pass
    with client_before(address) as client:
        response = client.get("/v1/models")
        assert response.status_code == 502
        assert address in message(response)
        assert client.get("/").status_code == 200  # the page, which shows the error


def test_page_is_there_without_asking_the_other_server():
    with stand_in(says(503, b"{}")) as (address, asked), client_before(address) as client:
        for path in ("/", "/page/main.js"):
            assert client.get(path).status_code == 200
        assert asked == []


def test_page_learns_that_the_other_server_wants_a_token(run_dir):
    with server_process(run_dir, "--token", "secret") as (address, _), client_before(address) as client:
        refused = client.get("/api/runs")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/api/runs", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_stream_that_breaks_off_ends_with_an_error_instead_of_done():
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'data: {}\n\ndata: {"half')

    with stand_in(answer) as (address, _), client_before(address) as client:
        *_, last, end = client.post("/v1/completions", json={"stream": True}).text.split("\n\n")
    assert end == ""
    assert "cannot be asked" in json.loads(last.removeprefix("data: "))["error"]["message"]


def test_too_large_a_body_is_not_passed_on():
    with stand_in(says(200, b"{}")) as (address, asked), client_before(address) as client:
        assert client.post("/v1/completions", content=b"x" * (2**20 + 1)).status_code == 413
    assert asked == []


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_goes_away_ends_the_generation_behind(server, stream):
    def is_generating():
        return health(server)["is_generating"]

    fields = {"prompt": PROMPT, "max_tokens": 16_384, "n": 4, "stream": stream}
    with server_process(None, "--remote", server) as (local, _):
        connection = http.client.HTTPConnection(local.removeprefix("http://"), timeout=30)
        connection.request("POST", "/v1/completions", json.dumps(fields))
        if stream:
            assert connection.getresponse().read(10)
        wait_for(is_generating)
        connection.close()
        wait_for(lambda: not is_generating())


def test_stream_of_a_server_that_is_stopped_ends_with_an_error_instead_of_done(server):
    fields = {"prompt": PROMPT, "max_tokens": 16_384, "n": 4, "stream": True}
    with server_process(None, "--remote", server) as (local, process):
        connection = http.client.HTTPConnection(local.removeprefix("http://"), timeout=30)
        connection.request("POST", "/v1/completions", json.dumps(fields))
        response = connection.getresponse()
        assert response.read(10)
        process.send_signal(signal.SIGTERM)
        *_, last, end = response.read().decode().split("\n\n")
        connection.close()
        process.wait(timeout=30)
    assert end == ""
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the server has stopped"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"run": "runs/x"}, "`remote` is a server that has runs of its own; leave the run out"),
        ({"seed": 3}, "`seed` is for the `remote` server to decide"),
        ({"remote": "http://example.org"}, "must be text, an address such as https://a.example"),
        ({"remote": ""}, "`remote` is empty; give the address of a server, or leave it out"),
    ],
)
def test_what_cannot_be_combined_is_refused(options, expected):
    with pytest.raises(ng.UserError, match=expected):
        ng.app(**{"remote": "https://example.org", **options})
    with pytest.raises(ng.UserError, match=expected):
        ng.serve(**{"remote": "https://example.org", **options})


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_a_server_does_not_stand_before_itself(name, monkeypatch):
    monkeypatch.setattr(serving, "_run", lambda *_, **__: pytest.fail("it was started"))
    with pytest.raises(ng.UserError, match="is this server itself; give it another `port`"):
        ng.serve(remote=f"http://{name}:8000")


def test_the_base_url_of_openais_clients_is_an_address_too(server, run_dir):
    with client_before(f"{server}/v1/") as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == run_dir.name


@pytest.mark.parametrize(("given", "missing"), [(0, 1), (1, 0)])
def test_half_of_a_key_is_refused(given, missing, monkeypatch):
    names = (remote.ID_VARIABLE, remote.SECRET_VARIABLE)
    monkeypatch.setenv(names[given], "x")
    monkeypatch.delenv(names[missing], raising=False)
    with pytest.raises(ng.UserError, match=f"{names[missing]} is not set"):
        ng.app(remote="https://example.org")


def test_a_key_that_cannot_be_one_is_refused_and_never_shown(monkeypatch):
    monkeypatch.setenv(remote.ID_VARIABLE, "wk-1")
    monkeypatch.setenv(remote.SECRET_VARIABLE, "ws-se cret")
    with pytest.raises(ng.UserError, match=f"{remote.SECRET_VARIABLE} has a character that no key has") as error:
        ng.app(remote="https://example.org")
    assert "cret" not in str(error.value)


def test_a_line_break_after_a_key_is_no_part_of_it():
    environment = {remote.ID_VARIABLE: "wk-1\r\n", remote.SECRET_VARIABLE: " ws-2 "}
    assert remote.proxy_headers(environment) == {"Modal-Key": "wk-1", "Modal-Secret": "ws-2"}
    assert remote.proxy_headers({}) == {}


def test_what_is_not_encrypted_goes_to_no_proxy_of_the_environment(monkeypatch):
    with stand_in(says(200, b"{}")) as (address, asked), stand_in(says(200, b"{}")) as (proxy, by_proxy):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("http_proxy", proxy)
        with client_before(address) as client:
            assert client.get("/v1/models").status_code == 200
        assert (len(asked), by_proxy) == (1, [])


def test_an_address_or_a_proxy_that_cannot_be_used_is_an_error_at_once(monkeypatch):
    for variable in ("ALL_PROXY", "HTTPS_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "nonsense://x")
    with pytest.raises(ng.UserError, match="cannot be asked .*see HTTPS_PROXY"):
        ng.app(remote="https://example.org")


def test_an_application_without_a_lifespan_asks_too():
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.testclient import TestClient

    with stand_in(says(200, b'{"a": 1}')) as (address, _):
        app = Starlette(routes=[Mount("/below", ng.app(remote=address))])
        client = TestClient(app, base_url="http://localhost:8000")
        assert client.get("/below/health").json() == {"a": 1}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", True),
        ("https://a--nanogpt-lite-web.modal.run", True),
        ("https://example.org:8443/", True),
        ("http://localhost:8000", True),
        ("http://[::1]:8000", True),
        ("http://example.org", False),
        ("https://", False),
        ("example.org", False),
        ("https://user:word@example.org", False),
        ("https://example.org/?a=b", False),
        ("https://example.org:port", False),
        ("https://exam\nple.org", False),
        ("ftp://example.org", False),
    ],
)
def test_address_must_be_safe_to_send_a_key_to(address, expected):
    assert is_remote_address(address) is expected
