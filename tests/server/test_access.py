"""Who may ask: names in Host, sites in Origin, the token; and the headers of each answer."""

import asyncio
import sys

import pytest
from served_app import client_of

import nanogpt_lite as ng
from nanogpt_lite.cli.main import main
from nanogpt_lite.server import serving

pytest.importorskip("starlette", reason="needs starlette (the extra serve)")
pytest.importorskip("httpx", reason="needs httpx (the extra serve)")

PATHS = ["/", "/health", "/v1/models", "/api/runs", "/nothing"]


@pytest.fixture(scope="module")
def client(shared_run):
    with client_of(shared_run) as client:
        yield client


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"])
def test_names_of_this_machine_are_served(client, host):
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example@localhost",
     "localhost@evil.example", "localhost:x", "localhost/", "[::1", "10.0.0.7", "0.0.0.0", "", " "],
)  # fmt: skip
@pytest.mark.parametrize("path", PATHS)
def test_a_foreign_name_is_refused_everywhere(client, host, path):
    response = client.get(path, headers={"Host": host})
    assert response.status_code == 421
    assert "not for this server" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("http://localhost:8001", 403),
        ("http://127.0.0.1:8000", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
        ("localhost:8000", 403),
        ("", 403),
    ],
)
def test_pages_of_other_sites_are_refused(client, origin, status):
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("OPTIONS", "/v1/completions")):
        response = client.request(method, path, json={"max_tokens": 2}, headers={"Origin": origin})
        expected = 405 if method == "OPTIONS" and status == 200 else status
        assert response.status_code == expected
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("host", ["localhost", "evil.example"])
@pytest.mark.parametrize("path", PATHS)
def test_each_answer_has_the_headers_that_keep_it_in_its_place(client, host, path):
    headers = client.get(path, headers={"Host": host}).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert headers["cache-control"] == "no-store"


def test_the_token_is_needed_for_everything_but_health_and_the_page(trained):
    with client_of(trained, token="s3cret", allowed_hosts=["*"]) as client:
        assert client.get("/page/main.js").status_code == 200
        for path in PATHS:
            open_path = path in ("/", "/health")
            assert client.get(path).status_code == (200 if open_path else 401)
            wrong = {"Authorization": "Bearer s3cre"}
            assert client.get(path, headers=wrong).status_code == (200 if open_path else 401)
        good = {"Authorization": "Bearer s3cret", "Host": "any.example"}
        assert client.get("/v1/models", headers=good).status_code == 200
        assert client.get("/v1/models").headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/models", headers={"Authorization": "Bearer é".encode()}).status_code == 401


def test_a_token_may_have_any_characters(trained):
    with client_of(trained, token="geheimä") as client:
        assert client.get("/v1/models", headers={"Authorization": "Bearer geheimä".encode()}).status_code == 200


def test_allowed_hosts_are_a_list_of_names_in_any_case(trained):
    with pytest.raises(ng.UserError, match="is one text; give a list"):
        ng.app(trained, allowed_hosts="notes.example")
    with client_of(trained, allowed_hosts=["Notes.example"]) as client:
        assert client.get("/health", headers={"Host": "notes.example"}).status_code == 200
        assert client.get("/health", headers={"Host": "otes.example"}).status_code == 421


@pytest.mark.parametrize("host", ["evil@localhost", "a/b", "a:b"])
def test_a_host_that_is_no_name_is_refused_also_where_any_is_allowed(trained, host):
    with client_of(trained, allowed_hosts=["*"]) as client:
        assert client.get("/health", headers={"Host": "any.example"}).status_code == 200
        assert client.get("/health", headers={"Host": host}).status_code == 421


def test_an_address_beyond_this_machine_needs_a_token(trained, capsys):
    for host in ("0.0.0.0", "::", "10.1.2.3", "my.name"):
        assert main(["serve", "--host", host]) == 2
        err = capsys.readouterr().err
        assert "lets other machines ask this server; give a --token" in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("localhost.evil", False),
    ],
)
def test_which_addresses_only_this_machine_reaches(host, expected):
    assert serving._is_loopback(host) is expected


def test_a_name_that_means_no_address_is_an_error_of_the_user(trained, monkeypatch):
    def fail(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    with pytest.raises(ng.UserError, match="`host='nobody.invalid'` is no address of this machine"):
        ng.serve(trained, host="nobody.invalid", token="s3cret")


def test_a_token_may_be_in_a_file(trained, tmp_path, capsys):
    (tmp_path / "token.txt").write_text("s3cret\n")
    with client_of(trained, token="FILE:token.txt") as client:
        assert client.get("/v1/models", headers={"Authorization": "Bearer s3cret"}).status_code == 200
    (tmp_path / "token.txt").write_text("\n")
    for path in ("token.txt", "no.txt"):
        with pytest.raises(ng.UserError, match="the token file"):
            ng.app(trained, token=f"FILE:{path}")


def test_a_server_in_a_notebook_is_refused(trained):
    async def cell():
        ng.serve(trained)

    with pytest.raises(ng.UserError, match="cannot run in a notebook"):
        asyncio.run(cell())


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "httpx"])
def test_a_missing_extra_is_one_line(package, trained, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = ["--remote", "https://example.org"] if package == "httpx" else []
    assert main(["serve", *arguments]) == 2
    assert capsys.readouterr().err.endswith(
        f"error: a server needs {package}; install it: pip install 'nanogpt-lite[serve]'\n"
    )


@pytest.mark.parametrize("folder", ["/page", "/page/more", "/api"])
def test_the_token_is_needed_wherever_the_application_is_mounted(trained, folder):
    """Its own paths decide, and not those of the application around it."""
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.testclient import TestClient

    application = Starlette(routes=[Mount(folder, ng.app(trained, device="cpu", token="s3cret"))])
    client = TestClient(application, base_url="http://localhost:8000")
    for path in ("/v1/models", "/api/runs"):
        assert client.get(folder + path).status_code == 401
    assert client.post(f"{folder}/api/trainings", json={}).status_code == 401
    assert client.get(f"{folder}/page/main.js").status_code == 200
    assert client.get(f"{folder}/health").status_code == 200


@pytest.mark.parametrize(("options", "can_train"), [({}, False), ({"token": "s3cret"}, True)])
def test_any_page_of_the_web_may_not_start_trainings(trained, options, can_train):
    """With any name in `Host`, DNS rebinding lets pages of other sites ask."""
    headers = {"Authorization": "Bearer s3cret"}
    with client_of(trained, allowed_hosts=["*"], **options) as client:
        assert client.get("/api/options", headers=headers).json()["can_train"] is can_train
        status = client.post("/api/trainings", json={}, headers=headers).status_code
    assert status == (400 if can_train else 403)
