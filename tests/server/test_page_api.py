"""The page: its files, who may see it, and what it asks the server for: options, runs and their records."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin, urlsplit

import pytest
from conftest import TEXT
from served_app import client_of
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.config import recipe
from nanogpt_lite.config.options import InspectConfig, SampleConfig, TrainConfig
from nanogpt_lite.config.presets import PRESETS
from nanogpt_lite.config.schema import Role, type_of
from nanogpt_lite.tracking.metrics_file import MetricsFile, read_metrics

page_files = pytest.importorskip("nanogpt_lite.server.page_files", reason="needs starlette (the extra serve)")
pytest.importorskip("httpx", reason="needs httpx (the extra serve)")

PAGE = Path(page_files.__file__).parent / "page"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
NEVER_OFFERED = {"out_dir", "dataset", "init_from", "trace", "device", "wandb_project", "tensorboard", "compile"}


@pytest.fixture(scope="module")
def client(shared_run):
    with client_of(shared_run) as client:
        yield client


@pytest.fixture
def empty_client(tmp_path, monkeypatch):
    """A client of a server in a folder without any run."""
    monkeypatch.chdir(tmp_path)
    with client_of(None) as client:
        yield client


def references(name: str, text: str) -> list[str]:
    """What a file of the page loads: in HTML `src` and `href`, in JavaScript imports, in CSS `url` and `@import`."""
    if name.endswith(".html"):
        return re.findall(r"""\b(?:src|href)\s*=\s*["']([^"']*)["']""", text)
    if name.endswith(".js"):
        imports = (
            r"""(?:^|[;\s])(?:import|export)\s*(?:[\w*{][^;"']*?\sfrom\s*)?["']([^"']+)["']|\bimport\s*\(\s*([^)]*)"""
        )
        return [first or second.strip("\"'` ") for first, second in re.findall(imports, text)]
    return [first or second for first, second in re.findall(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""", text)]


def loaded_files(client) -> dict[str, str]:
    """The paths of all files that the page loads, and what loads them; all of them are asked for."""
    loaders, waiting = {"/": "the browser"}, ["/"]
    while waiting:
        path = waiting.pop()
        response = client.get(path)
        assert response.status_code == 200, f"{path}, which {loaders[path]} loads"
        suffix = PurePosixPath(path).suffix or ".html"
        assert response.headers["content-type"] == CONTENT_TYPES[suffix], path
        for reference in references(path if suffix != ".html" else ".html", response.text):
            if reference.startswith(("#", "data:")):
                continue
            parts = urlsplit(urljoin(f"http://localhost:8000{path}", reference))
            assert parts.netloc == "localhost:8000", f"{path} loads {reference} from another host"
            assert parts.path.startswith("/page/"), f"{path} loads {reference}"
            if parts.path not in loaders:
                loaders[parts.path] = path
                waiting.append(parts.path)
    return loaders


def test_the_page_loads_files_that_exist_and_none_of_another_host(client):
    loaded = loaded_files(client)
    names = {path.removeprefix("/page/") for path in loaded if path != "/"}
    assert {"main.js", "style.css", "api.js"} <= names
    files = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.suffix in CONTENT_TYPES}
    assert names | {"index.html"} == files, "each file of the page is loaded"
    for name in names:
        assert client.get(f"/page/{name}").content == (PAGE / name).read_bytes()


def test_the_page_is_html_that_runs_no_code_of_its_own(client):
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text.startswith("<!doctype html>")
    assert response.text == client.get("/page/index.html").text == (PAGE / "index.html").read_text(encoding="utf-8")
    # what the policy of the answer forbids would not work
    assert "style-src 'self'" in response.headers["content-security-policy"]
    for element in re.findall(r"<script\b[^>]*>[^<]*", response.text):
        assert re.fullmatch(r"<script\b[^>]*\bsrc=[^>]*>\s*", element), element
    assert not re.search(r"""<style\b|\sstyle\s*=|\son\w+\s*=\s*["']|javascript:""", response.text)


def test_no_file_of_the_page_names_another_host():
    """Except of names in XML, and in the files of others, which are comments."""
    for path in PAGE.rglob("*"):
        if path.suffix in CONTENT_TYPES and path.parent == PAGE:
            found = re.findall(r"""(?:https?:)?//[\w-]+(?:\.[\w-]+)+[^\s"'`)]*""", path.read_text(encoding="utf-8"))
            assert set(found) <= {"http://www.w3.org/2000/svg"}, path


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page", "/page/nothing.js", "/page/main", "/page/MAIN.JS", "/page/vendor", "/page/vendor/",
     "/page/vendor/LICENSE", "/page/%2e%2e/page_files.py", "/page/..%2fpage_files.py", "/page/%2e%2e", "/page/%2e",
     "/page/%2e/main.js", "/page/vendor/%2e%2e/main.js", "/page/vendor%2f..%2fmain.js", "/page//main.js",
     "/page/main.js/", "/page/main.js%00", "/page/%2fetc/passwd", "/page/..%5cpage_files.py", "/index.html", "/main.js",
     "/page/__init__.py", "/page/%ff"],
)  # fmt: skip
def test_other_names_are_no_files_of_the_page(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert set(response.json()) == {"error"}


@pytest.mark.parametrize("path", ["/", "/page/main.js"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_the_page_is_only_read(client, path, method):
    response = client.request(method, path, content=b"{}")
    assert response.status_code == 405
    assert method not in response.headers["allow"]
    assert client.head(path).status_code == 200


def test_with_a_token_the_page_is_open_and_what_it_asks_for_is_not(shared_run):
    name = shared_run.out_dir.name
    with client_of(shared_run, token="s3cret") as client:
        assert len(loaded_files(client)) > 5
        gets = ["/api/options", "/api/runs", f"/api/runs/{name}/records", "/v1/models", f"/v1/models/{name}",
                "/api/nothing", "/page/%2e%2e/api/runs", "/page", "//page/main.js", "/PAGE/main.js"]  # fmt: skip
        posts = ["/api/trainings", f"/api/runs/{name}/stop", f"/api/runs/{name}/resume", "/api/inspect",
                 "/v1/completions", "/v1/chat/completions"]  # fmt: skip
        good = {"Authorization": "Bearer s3cret"}
        for method, path in [*(("GET", path) for path in gets), *(("POST", path) for path in posts)]:
            response = client.request(method, path)
            if path.startswith("/page/"):  # which is no page, and leads nowhere
                assert response.status_code == 404
                continue
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer"), path
            assert name not in response.text
            assert client.request(method, path, headers={"Authorization": "Bearer s3cre"}).status_code == 401
            assert client.request(method, path, headers=good).status_code not in (401, 403), path


FIELD_NAMES = {"max_tokens": "max_new_tokens", "n": "num_samples"}


@pytest.mark.parametrize(
    ("part", "kind"), [("sampling", SampleConfig), ("inspection", InspectConfig), ("training", TrainConfig)]
)
def test_options_are_described_as_they_are_defined(client, part, kind):
    fields = {field.name: field for field in dataclasses.fields(kind)}
    described = client.get("/api/options").json()[part]
    assert described
    assert len({option["name"] for option in described}) == len(described)
    for option in described:
        field = fields[FIELD_NAMES.get(option["name"], option["name"])]
        assert option == {
            "name": option["name"],
            "option": field.name,
            "help": field.metadata["help"],
            "unit": field.metadata["unit"],
            "type": type_of(field).__name__,
            "default": field.default,
            "choices": list(field.metadata["rule"].choices),
        }
        assert type(option["default"]) is field.type or (field.type, type(option["default"])) == (float, int)
        assert option["help"]
    assert not NEVER_OFFERED & {option["option"] for option in described}


def test_the_options_that_are_offered_are_those_that_requests_may_have(client):
    options = client.get("/api/options").json()
    offered = {part: [option["name"] for option in options[part]] for part in ("sampling", "inspection", "training")}
    assert {"temperature", "top_k", "top_p", "min_p", "seed", "max_tokens", "n", "stop"} == {*offered["sampling"]}
    # each at its default, except for an empty stop text, which a request leaves out
    defaults = {option["name"]: option["default"] for option in options["sampling"] if option["default"] != ""}
    assert client.post("/v1/completions", json={**defaults, "max_tokens": 3}).status_code == 200
    assert offered["inspection"] == ["top"]
    decides = {field.name for field in dataclasses.fields(TrainConfig) if field.metadata["role"] is Role.NETWORK}
    assert decides <= {*offered["training"]}
    assert {"max_iters", "batch_size", "learning_rate", "sample_interval", "keep_early"} <= {*offered["training"]}
    assert options["training_defaults"] == {"sample_interval": 50, "keep_early": 100.0}
    choices = {option["name"]: option["choices"] for option in options["training"]}
    assert choices["position"] == ["learned", "rotary"]
    assert choices["n_layer"] == choices["tokenizer"] == []
    assert options["presets"] == PRESETS
    assert {"n_layer", "n_embd", "position"} <= {*options["network"]} <= decides
    assert {*options["fitted"]} == {*recipe.RECIPES}
    assert all({*names} <= {*offered["training"]} for names in options["fitted"].values())
    assert (options["version"], options["default_preset"]) == (ng.__version__, recipe.default_preset("cpu"))


def test_the_options_say_how_networks_are_loaded_and_what_can_be_trained_on(shared_run):
    with client_of(shared_run, threads=2, checkpoint="last", training=False) as client:
        options = client.get("/api/options").json()
        assert options["load"] == {"device": "cpu", "threads": 2}
        assert options["can_train"] is False
        assert options["datasets"] == ["shakespeare_char", "python_docs", "bottles"]
    with client_of(shared_run, training=True) as client:
        assert client.get("/api/options").json()["can_train"] is True


def test_no_option_of_the_server_is_shown(shared_run):
    with client_of(shared_run, token="s3cret") as client:
        for path in ("/api/options", "/api/runs", "/health"):
            response = client.get(path, headers={"Authorization": "Bearer s3cret"})
            assert response.status_code == 200
            assert "s3cret" not in response.text


@pytest.fixture
def several(trained):
    """`trained`, another run with many checkpoints, one that is trained now, and folders that are no runs."""
    runs = trained.out_dir.parent
    ng.train("bottles.txt", **{**TINY, "keep_every": 5, "keep_early": 1}, out_dir=runs / "a")
    (runs / "empty").mkdir()
    (runs / "notes.csv").write_text("no run")
    (runs / "begun").mkdir()
    lines = trained.out_dir.joinpath("metrics.jsonl").read_bytes().splitlines(keepends=True)
    (runs / "begun" / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:9])
    return trained


def test_runs_have_states_and_their_checkpoints_in_the_order_of_steps(several):
    from nanogpt_lite.runs.run_files import lock_run

    with client_of(several) as client:
        content = client.get("/api/runs").json()
        assert content["models"] == [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert content["training"] is None
        runs = {run["name"]: run for run in content["runs"]}
        assert list(runs) == ["bottles-1", "a", "begun"]
        assert {name: run["state"] for name, run in runs.items()} == {
            "bottles-1": "finished",
            "a": "finished",
            "begun": "unfinished",
        }
        a = runs["a"]
        assert [(checkpoint["step"], checkpoint["model"]) for checkpoint in a["checkpoints"]] == [
            (5, "a/early_000005"),
            (5, "a/step_000005"),
            (10, "a/early_000010"),
            (10, "a/step_000010"),
            (15, "a/step_000015"),
            (20, "a/early_000020"),
            (20, "a/step_000020"),
            (20, "a/last"),
            (20, "a"),
        ]
        assert sorted(a["models"]) == sorted(checkpoint["model"] for checkpoint in a["checkpoints"])
        assert {*a["models"]} <= {*content["models"]}
        assert (a["step"], a["max_iters"], a["folder"], a["is_finished"]) == (20, 20, "runs/a", True)
        metrics = read_metrics(several.out_dir.parent / "a" / "metrics.jsonl")
        losses = [[record["step"], *2 * [record["val_loss"]]] for record in metrics if record["kind"] == "eval"]
        assert [step for step, *_ in losses] == [10, 20]
        best = min(losses, key=lambda evaluation: evaluation[1])
        assert (a["evaluations"], [a["best_step"], a["best_val_loss"]]) == (losses, best[:2])
        assert a["data_sha256"] == hashlib.sha256(TEXT.encode()).hexdigest() == runs["bottles-1"]["data_sha256"]
        assert a["trend"] == "lowest", "the second of two evaluations is the lowest"
        begun = runs["begun"]
        assert begun["trend"] is None
        assert (begun["models"], begun["checkpoints"], begun["evaluations"], begun["verdict"]) == ([], [], [], None)
        assert (begun["max_iters"], begun["best_val_loss"], begun["is_finished"]) == (20, None, False)
        with lock_run(several.out_dir.parent / "begun"):
            states = {run["name"]: run["state"] for run in client.get("/api/runs").json()["runs"]}
            assert states == {"bottles-1": "finished", "a": "finished", "begun": "training"}
        response = client.post("/v1/completions", json={"model": "a/early_000005", "prompt": "9", "max_tokens": 9})
        expected = ng.sample("runs/a", checkpoint="early_000005", start="9", max_new_tokens=9, device="cpu", threads=1)
        assert response.json()["choices"][0]["text"] == expected[0].removeprefix("9")


def test_a_checkpoint_whose_step_no_record_says_is_a_model_and_not_among_the_checkpoints(trained):
    content = (trained.out_dir / "best.safetensors").read_bytes()
    (trained.out_dir / "step_000003.safetensors").write_bytes(content)
    with client_of(trained) as client:
        (run,) = client.get("/api/runs").json()["runs"]
        assert "bottles-1/step_000003" in run["models"]
        assert [checkpoint["model"] for checkpoint in run["checkpoints"]] == ["bottles-1/last", "bottles-1"]


def test_without_any_run_the_lists_are_empty_and_a_request_for_text_says_what_to_do(empty_client, tmp_path):
    assert empty_client.get("/").status_code == 200
    assert empty_client.get("/api/runs").json() == {"models": [], "runs": [], "training": None}
    assert empty_client.get("/v1/models").json()["data"] == []
    assert empty_client.get("/api/options").json()["datasets"] == ["shakespeare_char", "python_docs"]
    for path, body in (("/v1/completions", {}), ("/api/inspect", {"text": "9"})):
        response = empty_client.post(path, json=body)
        assert response.status_code == 404
        assert "no trained network yet; train one: nanogpt-lite run" in response.json()["error"]["message"]
    response = empty_client.post("/v1/completions", json={"model": "a"})
    assert (response.status_code, "there is no model 'a'" in response.text) == (404, True)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_trained_later_is_there_without_a_new_start(text_file):
    with client_of(None) as client:
        assert client.get("/api/runs").json()["models"] == []
        ng.train("bottles.txt", **{**TINY, "max_iters": 2}, out_dir="runs/b")
        assert client.get("/api/runs").json()["models"] == ["b", "b/last"]
        assert client.post("/v1/completions", json={"max_tokens": 2}).json()["model"] == "b"
        ng.train("bottles.txt", **{**TINY, "max_iters": 2}, out_dir="runs/a")
        assert client.get("/api/runs").json()["models"] == ["b", "b/last", "a", "a/last"], "the default stays"
        assert client.get("/api/options").json()["datasets"][-1] == "bottles"
    with client_of(None) as client:
        assert client.get("/api/runs").json()["models"][0] == "a", "the newest"


def test_a_run_that_is_named_must_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ng.UserError, match="there is no run runs"):
        ng.app("runs/nothing", device="cpu")


def test_records_are_those_of_the_file_and_after_a_place_the_new_ones(trained):
    path = trained.out_dir / "metrics.jsonl"
    records = read_metrics(path)
    with client_of(trained) as client:
        content = client.get("/api/runs/bottles-1/records").json()
        assert {name: content[name] for name in ("records", "is_whole")} == {"records": records, "is_whole": True}
        same = client.get("/api/runs/bottles-1/records", params={"after": content["cursor"]}).json()
        assert same == {"records": [], "cursor": content["cursor"], "is_whole": False}
        with path.open("ab") as file:
            file.write(json.dumps(records[0]).encode() + b"\n" + b'{"kind": "step"')
        new = client.get("/api/runs/bottles-1/records", params={"after": content["cursor"]}).json()
        assert (new["records"], new["is_whole"]) == ([records[0]], False)
        for after in ("", "x", "9" * 40, "9" * 5000, "\0", "٣-1", content["cursor"] + "1"):
            whole = client.get("/api/runs/bottles-1/records", params={"after": after}).json()
            assert whole == {"records": [*records, records[0]], "cursor": new["cursor"], "is_whole": True}
        MetricsFile(path, keep_until=10).close()  # as a resume does
        again = client.get("/api/runs/bottles-1/records", params={"after": new["cursor"]}).json()
        kept = [record for record in records if record["step"] <= 10]
        assert (again["records"][: len(kept)], again["is_whole"]) == (kept, True)


def test_a_run_without_records_has_none(trained):
    other = trained.out_dir.parent / "copied"
    other.mkdir()
    (other / "best.safetensors").write_bytes((trained.out_dir / "best.safetensors").read_bytes())
    with client_of(trained) as client:
        content = client.get("/api/runs/copied/records").json()
        assert (content["records"], content["is_whole"]) == ([], True)
        copied = client.get("/api/runs").json()["runs"][1]
        assert (copied["name"], copied["models"], copied["checkpoints"]) == ("copied", ["copied"], [])
        assert (copied["step"], copied["max_iters"], copied["evaluations"]) == (None, None, [])


@pytest.mark.parametrize(
    "name",
    ["nobody", "..", ".", "%2e%2e", "../bottles-1", "%2e%2e%2fbottles-1", "..%2f..%2fruns%2fbottles-1", "bottles-1%00",
     "runs%2fbottles-1", "BOTTLES-1x", "bottles-1%2f", "%3Cscript%3E", "%ff", "b" * 5000, "bottles-1%2fbest"],
)  # fmt: skip
@pytest.mark.parametrize("what", ["records", "stop", "resume"])
def test_a_run_that_does_not_exist_is_not_found_and_no_path(client, name, what):
    path = f"/api/runs/{name}/{what}"
    response = client.get(path) if what == "records" else client.post(path, json={})
    # of a training, only its name is looked at to stop it
    assert response.status_code in ((404, 400) if what == "stop" else (404,))
    assert set(response.json()) == {"error"}


def test_the_message_about_a_run_that_does_not_exist_says_where_runs_are_listed(client):
    message = client.get("/api/runs/nobody/records").json()["error"]["message"]
    assert message == "there is no run 'nobody'; /api/runs lists those that exist"
