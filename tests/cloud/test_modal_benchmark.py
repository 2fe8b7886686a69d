"""`modal run modal_app.py::benchmark`: what its Image has, and the whole command on the local Modal, on a CPU."""

import ast
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys

import error_recorder
import pytest

import nanogpt_lite as ng

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

from local_modal import LocalModal
from modal_alone import only_installed
from modal_commands import APP, ROOT, environment_with_modal_alone, functions_of

from nanogpt_lite.cloud import benchmark_job

# In place of nanoGPT: a program that prints what its train.py prints, and a network that cannot be loaded.
TRAIN = """
import sys, time
options = dict(word[2:].split("=") for word in sys.argv[1:] if word.startswith("--"))
steps, interval, every = (int(options[name]) for name in ("max_iters", "eval_interval", "log_interval"))
print("tokens per iteration will be: 1,128")
for step in range(steps + 1):
    if step % interval == 0:
        print(f"step {step}: train loss 3.0000, val loss {3 - step / 100:.4f}")
    if step % every == 0:
        print(f"iter {step}: loss 3.0000, time 1.00ms, mfu -100.00%")
    time.sleep(0.001)  # the work of a step
"""
MODEL = """
class GPT:
    pass

class GPTConfig:
    def __init__(self, **options):
        raise OSError("no network")
"""
CLONE = {
    "train.py": TRAIN,
    "model.py": MODEL,
    "configurator.py": "",
    "config/train_shakespeare_char.py": "",
    "data/shakespeare_char/prepare.py": "",
}
TEXT = "".join(f"{n} green bottles hanging on the wall, and if {n % 7} should fall;\n" for n in range(1500))
# in a container: the clone is in the current folder, and the text is not the one of the web
CONTAINER = """
import os
from pathlib import Path
from nanogpt_lite.data import download, sources

sources.RESOURCES["shakespeare_char"] = download.Resource(
    url="http://127.0.0.1:9", cache_name="shakespeare_char/input.txt", sha256={sha256!r}
)
if Path.cwd().name == "root" and not Path("nanoGPT").exists():
    os.symlink({clone!r}, "nanoGPT")
"""


@pytest.fixture
def app(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("modal_app")


def benchmark_layers():
    """The calls that make the Image of the benchmark, by their names."""
    tree = ast.parse(APP.read_text(encoding="utf-8"))
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "benchmark_image"
    )
    calls = [node for node in ast.walk(value) if isinstance(node, ast.Call)]
    return {ast.unparse(call.func).rpartition(".")[2]: call for call in calls}


def test_image_has_a_commit_of_nanogpt_and_exact_versions_of_the_test_tools():
    layers = benchmark_layers()
    clone, checkout = (ast.literal_eval(word) for word in layers["run_commands"].args)
    assert clone == "git clone https://github.com/karpathy/nanoGPT /root/nanoGPT"
    assert re.fullmatch(r"git -C /root/nanoGPT checkout [0-9a-f]{40}", checkout)
    packages = dict(ast.literal_eval(word).split("==") for word in layers["uv_pip_install"].args)
    assert packages.keys() == {"pytest", "hypothesis"}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in packages.values())


class RecordedFunction:
    """Stands for the Function: the options that it gets, and the tables that it sends."""

    def __init__(self, tables):
        self.tables, self.calls = tables, []

    def with_options(self, **options):
        self.calls.append(options)
        return self

    def remote_gen(self, **options):
        self.calls.append(options)
        return iter(self.tables)


def test_command_says_what_it_costs_and_writes_the_tables(app, tmp_path, monkeypatch, capsys):
    tables = [{"name": name, "json": "{}", "markdown": name} for name in ("l4-incomplete", "l4")]
    function = RecordedFunction(tables)
    monkeypatch.setattr(app, "benchmark_on_gpu", function)
    assert app.benchmark(gpu="L4", to=str(tmp_path), max_dollars=0.5) == f"wrote {tmp_path / 'l4.md'}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l4.json", "l4.md"]
    printed = capsys.readouterr().out
    assert printed.startswith("renting 1 x L4, $1.05 an hour, for at most ")
    assert "at most $0.50\n" in printed
    seconds = int(0.5 / (0.000222 + 4 * 0.0000131 + 8 * 0.00000222))
    assert function.calls == [
        {"gpu": "L4", "cpu": 4, "memory": 8192, "timeout": seconds + 300},
        {"time_limit": seconds},
    ]


def test_mistake_is_one_line_and_nothing_is_called(app, monkeypatch, capsys):
    monkeypatch.setattr(app, "benchmark_on_gpu", RecordedFunction([]))
    with pytest.raises(SystemExit, match="^2$"):
        app.benchmark(gpu="T4:2")
    assert capsys.readouterr().err.startswith("error: --gpu T4:2 is more than one GPU")
    with pytest.raises(SystemExit, match="^1$"):
        app.benchmark(gpu="T4")
    assert "error: nothing was measured" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The .* function is executing locally")
def test_function_spells_options_of_errors_as_modal_does(app, monkeypatch):
    def fail(call, **options):
        assert options == {"time_limit": 2400, "short": True}
        yield {}
        raise ng.UserError("give a longer `timeout`")

    monkeypatch.setattr(benchmark_job, "benchmark_job", fail)
    tables = app.benchmark_on_gpu.local(short=True)
    assert next(tables) == {}
    with pytest.raises(ng.UserError, match="^give a longer --timeout$"):
        next(tables)


@pytest.mark.slow
def test_whole_command_on_a_cpu_with_a_nanogpt_whose_samples_fail(tmp_path):
    for name, content in CLONE.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    site = tmp_path / "site"
    (site / "cache/shakespeare_char").mkdir(parents=True)
    (site / "cache/shakespeare_char/input.txt").write_text(TEXT)
    code = CONTAINER.format(sha256=hashlib.sha256(TEXT.encode()).hexdigest(), clone=str(tmp_path / "clone"))
    (site / "sitecustomize.py").write_text(code)
    (tmp_path / "home").mkdir()
    variables = {"NANOGPT_LITE_CACHE": str(site / "cache"), "OMP_NUM_THREADS": "1"}  # no spinning beside other tests
    with LocalModal(tmp_path / "modal", pythonpath=[site], variables=variables) as service:
        env = environment_with_modal_alone(service.folder / "alone")
        words = ["run", f"{APP}::benchmark", "--short", "--device=cpu", "--gpu=T4"]
        done = service.modal(*words, cwd=tmp_path / "home", env=env, timeout=560)
        assert done.returncode == 0, done.stdout + done.stderr
        (container,) = service.containers
        assert functions_of(service.containers) == ["benchmark"]
        assert (container.gpu_type, container.timeout) == ("T4", 45 * 60)
        assert "torch==2.13.0" in service.image_of(container)
        assert "git clone https://github.com/karpathy/nanoGPT /root/nanoGPT" in service.image_of(container)
        assert (container.folder / "root/tests/conftest.py").is_file()
    results = tmp_path / "home/benchmarks/results"
    assert sorted(path.name for path in results.iterdir()) == ["on_gpu-cpu-short.json", "on_gpu-cpu-short.md"]
    assert (results / "on_gpu-cpu-short.md").read_text() in done.stdout
    report = json.loads((results / "on_gpu-cpu-short.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    sampling = {name for name in rows if "sample" in name}
    assert len(sampling) == 2
    for name, row in rows.items():
        if name != "modern, training to 1.4697":
            assert row["nanogpt_lite"] > 0, name
        has_nanogpt = not name.startswith(("modern, eager", "modern, compiled", "modern, memory"))
        assert (row["nanogpt"] is not None) == (has_nanogpt and name not in sampling), name
        assert row["reason"].endswith("no network") == (name in sampling), name
    assert rows["shakespeare_char, best val loss"]["nanogpt"] == 2.8
    assert len(report["failures"]) == 2
    tests = report["tests"]
    assert tests["passed"] == 0
    assert tests["skipped"] >= 10
    assert not tests["failed"]


@pytest.mark.slow
def test_gpu_tests_need_no_package_that_the_image_does_not_have(tmp_path, monkeypatch):
    names = ["torch", "numpy", "requests", "safetensors", "tqdm", "filelock", "tokenizers", "huggingface_hub"]
    env = only_installed(tmp_path / "site", *names, "matplotlib", "pytest", "hypothesis", "modal")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([env["PYTHONPATH"], str(ROOT)])}
    environment.pop(error_recorder.VARIABLE)  # this process has its own file
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # pytest finds plugins although they cannot be imported
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_tests import PYTEST_OPTIONS, files_with_gpu_tests

    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", *PYTEST_OPTIONS, *files_with_gpu_tests()]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
