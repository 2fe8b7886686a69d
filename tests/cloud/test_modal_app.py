"""modal_app.py on the local Modal: the real `modal` command and container processes, on CPUs. See `local_modal`."""

import ast
import importlib
import json
import os
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import documentation
import pytest
from conftest import TEXT
from modal_alone import modal_alone

import nanogpt_lite as ng
from nanogpt_lite.cli.main import main
from nanogpt_lite.cloud import jobs
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.device.gpus import GPUS

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

from local_modal import LocalModal

ROOT = Path(__file__).parents[2]
APP = ROOT / "modal_app.py"
MODAL_PAGE = ROOT / "docs/modal.md"
SMALL: dict[str, Any] = {"block_size": 8, "batch_size": 2, "n_layer": 1, "n_head": 2, "n_embd": 8, "threads": 1}


def to_flags(options):
    """Options as flags of Modal's command line."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


FLAGS = to_flags(SMALL)
VOLUME_NAME = "nanogpt-lite"


@pytest.fixture
def service(tmp_path, request):
    secrets = {"stored-at-modal": {"WANDB_API_KEY": "from-modal"}}
    with LocalModal(tmp_path / "modal", secrets=secrets, exit_commits=getattr(request, "param", False)) as service:
        yield service


@pytest.fixture
def prepared(service, tmp_path):
    """The service, with the dataset "bottles" on the Volume."""
    (tmp_path / "bottles.txt").write_text(TEXT)
    (tmp_path / "work").mkdir()
    dataset = ng.prepare(tmp_path / "bottles.txt", out_dir=service.volume(VOLUME_NAME) / "datasets" / "bottles")
    assert dataset.path.is_dir()
    return service


def modal_run(service, *arguments, code=0, env=None, **options):
    """What `modal run` prints, on a machine where only the package modal is installed."""
    env = {**modal_alone(service.folder / "alone"), **(env or {})}
    done = service.modal("run", *arguments, timeout=120, env=env, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def map_in_pairs(call, *arguments):
    """The results of `call` for each of the arguments, two at a time: most of the time goes into importing PyTorch."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(call, arguments))


def train_without_modal(service, folder, monkeypatch, **options):
    """A run of this process in `folder`, on the dataset of the Volume."""
    monkeypatch.chdir(folder)
    Path("data").mkdir()
    Path("data/bottles").symlink_to(service.volume(VOLUME_NAME) / "datasets/bottles")
    return ng.train("data/bottles", preset="tutorial", **options)


def read_last(service, name):
    return (service.volume(VOLUME_NAME) / "runs" / name / "last.safetensors").read_bytes()


def last_eval_step(output):
    """The step of the last evaluation in the output of a container."""
    return max((int(line.split()[1][:-1]) for line in output.splitlines() if line.startswith("step ")), default=0)


def test_pipeline_with_the_lengths_of_the_tutorial(service, tmp_path, monkeypatch, capsys):
    (tmp_path / "bottles.txt").write_text(TEXT)
    (tmp_path / ".env").write_text("WANDB_API_KEY=from-file\nHF_TOKEN=from-file\nBANK=mine\n")
    env = {"HF_TOKEN": "from-environment", "NANOGPT_SECRET": "stored-at-modal"}
    printed = modal_run(service, APP, "--dataset", "bottles.txt", "--gpu=L4", *FLAGS, cwd=tmp_path, env=env)
    assert [container.function for container in service.containers] == ["prepare_data", "train", "sample"]
    assert [container.gpu_type for container in service.containers] == ["", "L4", "L4"]
    samples = printed[printed.rindex("--out_dir bottles") :].split("---------------")
    assert len(samples) == 3
    assert all(len(sample) > 300 for sample in samples)
    stored = service.volume(VOLUME_NAME)
    assert sorted(path.name for path in (stored / "datasets/bottles").iterdir()) == sorted(
        ["train.bin", "val.bin", "tokenizer.json", "manifest.json"]
    )
    metrics = ng.Run(stored / "runs/bottles").metrics
    assert [record["step"] for record in metrics if record["kind"] == "eval"] == [250, 500, 750, 1000]

    # one secret with the two variables of this machine, one that is stored at Modal
    local, named = [request for rpc, request in service.calls if rpc == "SecretGetOrCreate"][:2]
    assert dict(local.env_dict) == {"WANDB_API_KEY": "from-file", "HF_TOKEN": "from-environment"}
    assert (named.deployment_name, dict(named.env_dict)) == ("stored-at-modal", {})

    # the printed command downloads a run that can be sampled on this machine
    (command,) = [line.split(": ", 1)[1] for line in printed.splitlines() if line.startswith("download it: ")]
    get, sample = (part.split() for part in command.split(" && "))
    assert service.modal(*get[1:], cwd=tmp_path).returncode == 0
    assert (tmp_path / "bottles/last.safetensors").read_bytes() == read_last(service, "bottles")
    monkeypatch.chdir(tmp_path)
    assert main([*sample[1:], "--start=green", "--max_new_tokens=5"]) == 0
    assert capsys.readouterr().out.startswith("green")


@pytest.mark.slow  # other tests cover most of it
def test_each_function_as_a_command(prepared, tmp_path):
    name = ["--out-dir", "mine"]
    map_in_pairs(
        lambda arguments: modal_run(prepared, *arguments, env={"NANOGPT_GPU": "T4,L4"}),
        (f"{APP}::prepare_data", "--dataset", "python_docs"),
        (f"{APP}::train", "--dataset=bottles", *name, *FLAGS, "--max-iters=4"),
    )
    assert (prepared.volume(VOLUME_NAME) / "datasets/python_docs/train.bin").is_file()
    options = json.loads((prepared.volume(VOLUME_NAME) / "runs/mine/config.json").read_text())["config"]
    assert {key: options[key] for key in SMALL} == SMALL
    modal_run(prepared, f"{APP}::train", *name, "--max-iters=8", env={"NANOGPT_GPU": "H100"})  # resumes
    steps = [
        record["step"]
        for record in ng.Run(prepared.volume(VOLUME_NAME) / "runs/mine").metrics
        if record["kind"] == "done"
    ]
    assert steps == [4, 8]
    assert prepared.containers[-1].gpu_type == "H100"
    evaluated, sampled = map_in_pairs(
        lambda arguments: modal_run(prepared, *arguments),
        (f"{APP}::evaluate",),
        (f"{APP}::sample", *name, "--start", "10 green", "--num-samples=2", "--max-new-tokens=7"),
    )
    result = ast.literal_eval(next(line for line in evaluated.splitlines() if line.startswith("{")))
    assert result["step"] == 8
    assert sampled.count("10 green") == 2


def test_user_errors_of_each_command_are_shown(prepared, tmp_path):
    messages = {
        (f"{APP}::sample", "--out-dir", "nothing"): "there is no checkpoint of a run 'nothing'; train it: modal run",
        (f"{APP}::sweep", "--out-dir", "../secrets", "--learning-rate=1"): "invalid run name",
        (APP, "--dataset=bottles", "--gpu=L4:3"): "64 rows .* cannot be shared equally by 3 ranks",
        (APP, "--dataset=bottles", "--n-embd=10"): "multiple",
        (APP, "--dataset=bottles", "--gpu=T4,L4"): "set NANOGPT_GPU=T4,L4",
        (f"{APP}::train", "--learning-rat=1"): "No such option",
        (f"{APP}::train", "--max-iters=many"): "not a valid integer",
    }
    env = modal_alone(tmp_path / "alone")
    commands = map_in_pairs(lambda arguments: prepared.modal("run", *arguments, env=env), *messages)
    for done, message in zip(commands, messages.values(), strict=True):
        assert re.search(message, " ".join((done.stdout + done.stderr).split()))
    assert [done.returncode for done in commands] == [1, 1, 2, 2, 2, 2, 2]
    for done in commands[2:5]:  # found on this machine
        assert "Traceback" not in done.stdout + done.stderr
        assert [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "prepare_data" not in [container.function for container in prepared.containers]


@pytest.mark.filterwarnings("ignore:The .* function is executing locally")  # without the Volume
@pytest.mark.parametrize(
    ("function", "job"),
    [("prepare_data", "prepare_job"), ("train", "train_job"), ("sample", "find_run"), ("evaluate", "evaluate_job")],
)
def test_each_function_spells_options_of_library_errors_as_modal_does(function, job, monkeypatch):
    def fail(*arguments, **options):
        raise ng.UserError("give another `out_dir`, or `overwrite=True`")

    monkeypatch.syspath_prepend(ROOT)
    app = importlib.import_module("modal_app")
    monkeypatch.setattr(jobs, job, fail)
    with pytest.raises(ng.UserError, match="^give another --out-dir, or --overwrite$"):
        getattr(app, function).local()


def test_local_entrypoint_shows_library_errors_as_one_line_as_modal_spells_options(monkeypatch, capsys):
    def fail(values):
        raise ng.UserError("give fewer `num_samples`")

    monkeypatch.syspath_prepend(ROOT)
    app = importlib.import_module("modal_app")
    monkeypatch.setattr(app.SampleConfig, "from_dict", fail)
    with pytest.raises(SystemExit, match="^2$"):
        app.main()
    assert capsys.readouterr().err == "error: give fewer --num-samples\n"


def test_help_lists_the_options_in_the_order_of_the_library():
    help_text = subprocess.run(
        [sys.executable, "-m", "modal", "run", f"{APP}::train", "--help"], capture_output=True, text=True, check=True
    ).stdout
    flags = [line.split()[0] for line in help_text.splitlines() if line.startswith("  --")]
    expected = [f"--{name.replace('_', '-')}" for name in TrainConfig.names()]
    assert [flag for flag in flags if flag in expected] == expected
    assert "--learning-rate FLOAT" in help_text
    assert "--compile / --no-compile" in help_text


def test_the_documentation_is_right_about_commands_and_prices():
    shown = {" ".join(words): words for page in documentation.PAGES for words in documentation.modal_commands(page)}
    assert {line for line, words in shown.items() if words[1] != "run"} == {
        "modal setup",
        "modal deploy modal_app.py",  # test_deployed runs it
        "modal volume ls nanogpt-lite runs",
        "modal volume get --force nanogpt-lite runs/shakespeare_char .",  # as `train` prints it
    }
    lines = [words for words in shown.values() if words[1] == "run" and any(word.startswith("--") for word in words)]
    assert len(lines) >= 6
    assert "modal run modal_app.py" in shown

    def show_help(words):
        command = [sys.executable, "-m", *words, "--help"]  # an unknown flag is an error before help is printed
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert [done.stderr for done in map_in_pairs(show_help, *lines) if done.returncode] == []
    page = MODAL_PAGE.read_text(encoding="utf-8")
    listed = {
        name.strip(): float(price)
        for names, prices in re.findall(r"^\| ([A-Z][^|]*\d[^|]*) \| ([\d., ]+) \|", page, re.MULTILINE)
        for name, price in zip(names.replace(" (default)", "").split(","), prices.split(","), strict=True)
    }
    assert listed == {gpu.modal_type: round(3600 * (gpu.dollars_per_second or 0), 2) for gpu in GPUS if gpu.modal_type}


def test_import_needs_neither_torch_nor_a_network(tmp_path):
    code = "import sys; import modal_app; assert 'torch' not in sys.modules"
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "MODAL_SERVER_URL": "http://127.0.0.1:1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize(
    ("service", "ends"),
    [
        pytest.param(False, 2, id="twice"),
        pytest.param(False, 4, id="four_times", marks=pytest.mark.slow),
        pytest.param(True, 4, id="with_commits_at_exit", marks=pytest.mark.slow),
    ],
    indirect=["service"],
)
def test_run_is_bit_exact_after_preemptions_and_a_kill_at_random_moments(prepared, ends, tmp_path, monkeypatch):
    options = {**SMALL, "max_iters": 150, "eval_interval": 10, "dropout": 0.1}
    rng = random.Random()
    moments = sorted(rng.sample(range(1, 11), ends))  # evaluations, counted from the start
    killed = rng.randrange(ends)
    print("moments", moments, "killed at number", killed)
    client = prepared.popen_modal("run", f"{APP}::train", "--dataset=bottles", *to_flags(options))
    for number, moment in enumerate(moments):
        prepared.wait_for(lambda n=number: len(prepared.containers) > n, timeout=60)
        container = prepared.containers[number]
        prepared.wait_for(lambda c=container, step=10 * moment: last_eval_step(c.output) >= step, timeout=60)
        (prepared.crash if number == killed else prepared.preempt)(container)
    assert client.wait(120) == 0, prepared.report()
    assert len(prepared.containers) == ends + 1
    assert len({container.input_ids[0] for container in prepared.containers}) == 1

    undisturbed = train_without_modal(prepared, tmp_path / "work", monkeypatch, out_dir="runs/bottles", **options)
    assert read_last(prepared, "bottles") == (undisturbed.out_dir / "last.safetensors").read_bytes()


@pytest.mark.slow
def test_ranks_on_several_gpus_save_on_preemption_and_resume(prepared):
    options = {**SMALL, "batch_size": 8, "eval_interval": 10, "max_iters": 1000}
    client = prepared.popen_modal(
        "run", f"{APP}::train", "--dataset=bottles", *to_flags(options), env={"NANOGPT_GPU": "A100-80GB:2"}
    )
    prepared.wait_for(
        lambda: any(last_eval_step(container.output) >= 20 for container in prepared.containers), timeout=60
    )
    first = prepared.containers[0]
    assert (first.gpu_type, first.gpu_count) == ("A100-80GB", 2)
    prepared.preempt(first)
    assert client.wait(120) == 0, prepared.report()
    assert len(prepared.containers) == 2
    records = ng.Run(prepared.volume(VOLUME_NAME) / "runs/bottles").metrics
    ended = [record for record in records if record["kind"] == "done"]
    started = [record for record in records if record["kind"] == "start"]
    assert [record["ranks"] for record in started] == [2, 2]
    assert [record["reason"] for record in ended] == ["interrupted", "max_iters"]
    assert started[1]["step"] == ended[0]["step"]


@pytest.mark.slow
def test_sweep_trains_the_grid_and_resumes_the_best_trial(prepared):
    printed = modal_run(
        prepared, f"{APP}::sweep", "--dataset=bottles", *FLAGS, "--gpu=L4", "--learning-rate=1e-4,1e-2", "--min-lr=0",
        "--sweep-iters=20", "--max-iters=40", "--eval-interval=20", "--out-dir=grid",
    )  # fmt: skip
    table = [line for line in printed.splitlines() if line.startswith("| grid-")]
    assert [line.split(" | ")[1] for line in table] == ["0.01", "0.0001"]
    (written,) = (prepared.volume(VOLUME_NAME) / "sweeps").glob("*.md")
    assert table[0] in written.read_text()
    runs = {path.name: ng.Run(path).metrics[-1]["step"] for path in (prepared.volume(VOLUME_NAME) / "runs").iterdir()}
    assert sorted(runs.values()) == [20, 40]
    assert runs[table[0].split()[1]] == 40
    trainings = [container for container in prepared.containers if container.function == "train"]
    assert [container.gpu_type for container in trainings] == ["L4"] * 3


@pytest.mark.slow  # the commands test the same Functions
def test_functions_are_called_from_python_locally_and_remotely(prepared, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import modal
if __name__ == "__main__":
    from modal_app import app, prepare_data, train
    print(prepare_data.local(dataset="bottles.txt"))
    print("local", train.local(dataset="bottles.txt", max_iters=2, **{SMALL!r}))
    with app.run():
        print("remote", train.remote(dataset="bottles", out_dir="far", max_iters=2, **{SMALL!r}))
"""
    )
    done = prepared.python(script, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "local {'run': 'bottles'" in done.stdout
    assert "remote {'run': 'far'" in done.stdout
    assert (tmp_path / "runs/bottles/last.safetensors").is_file()


def test_deployed_app_is_called_from_python(prepared, tmp_path, monkeypatch):
    train_without_modal(
        prepared,
        tmp_path / "work",
        monkeypatch,
        out_dir=prepared.volume(VOLUME_NAME) / "runs/far",
        max_iters=2,
        **SMALL,
    )
    assert prepared.modal("deploy", APP).returncode == 0
    user = tmp_path / "user.py"
    (shown,) = documentation.code_blocks(MODAL_PAGE, "python")
    assert 'run="shakespeare_char"' in shown
    assert 'start="ROMEO:", num_samples=3)' in shown
    shown = shown.replace("shakespeare_char", "far").replace('"ROMEO:", num', '"green", max_new_tokens=3, num')
    user.write_text(
        shown
        + """
print(sampler.sample.remote(start="green", num_samples=2, max_new_tokens=3))
print("".join(sampler.stream.remote_gen(start="green", max_new_tokens=3)))
evaluate, train = (modal.Function.from_name("nanogpt-lite", name) for name in ("evaluate", "train"))
print("at step", evaluate.remote(out_dir="far")["step"])
train.remote(out_dir="far", max_iters=4)
print("at step", evaluate.remote(out_dir="far")["step"])
"""
    )
    done = prepared.python(user, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("green") == 4
    functions = [container.function for container in prepared.containers]
    assert functions.count("Sampler.*") == 1
    # a warm container sees what another container trained in the meantime
    assert functions.count("evaluate") == 1
    assert "at step 2\nat step 4\n" in done.stdout


def test_environment_of_the_client_has_modal_alone(tmp_path):
    """The environment in which `modal_run` runs the client."""
    code = "import modal; from importlib.util import find_spec; print(*map(find_spec, {}))"
    others = ["torch", "numpy", "requests", "safetensors", "tqdm", "filelock", "dotenv", "matplotlib"]
    printed = subprocess.run(
        [sys.executable, "-c", code.format(others)],
        env={**os.environ, **modal_alone(tmp_path / "alone")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.split() == ["None"] * len(others)
