"""modal_app.py on the local Modal: the real `modal` command and container processes, on CPUs. See `local_modal`.

Here the pipeline and each command. Mistakes of a user are in `test_modal_mistakes`, preemptions and crashes in
`test_modal_preemption`, the commands of the tutorial in `test_modal_tutorial`.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

import documentation
import pytest

import nanogpt_lite as ng
from nanogpt_lite.cli.main import main
from nanogpt_lite.cloud import jobs, prepare_job
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.spelling import for_modal
from nanogpt_lite.device.gpus import GB, GPUS

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

import modal_commands
from conftest import TEXT
from modal_alone import modal_alone
from modal_commands import (
    APP,
    FLAGS,
    ROOT,
    SMALL,
    VOLUME_NAME,
    functions_of,
    map_in_pairs,
    modal_run,
    read_last,
    records_of,
    run_command,
    stored_run,
    stored_runs,
    to_flags,
    train_without_modal,
)

service, prepared = modal_commands.service, modal_commands.prepared  # fixtures
MODAL_PAGE = ROOT / "docs/modal.md"


def images_of(service):
    """By Function, the commands that built the image of its containers."""
    return {container.function: service.image_of(container) for container in service.containers}


def test_pipeline_with_the_lengths_of_the_tutorial(service, tmp_path, monkeypatch, capsys):
    (tmp_path / "bottles.txt").write_text(TEXT)
    (tmp_path / ".env").write_text("WANDB_API_KEY=from-file\nHF_TOKEN=from-file\nBANK=mine\n")
    env = {"HF_TOKEN": "from-environment", "NANOGPT_SECRET": "stored-at-modal"}
    printed = modal_run(service, APP, "--dataset", "bottles.txt", "--gpu=L4", *FLAGS, cwd=tmp_path, env=env)
    assert functions_of(service.containers) == ["prepare_data", "train", "sample"]
    assert [container.gpu_type for container in service.containers] == ["", "L4", "L4"]
    command = "modal run modal_app.py::bring --out-dir bottles-1"
    samples = printed[printed.rindex(command) + len(command) :].split("---------------")
    assert len(samples) == 3
    assert all(len(sample) > 300 for sample in samples)
    stored = service.volume(VOLUME_NAME)
    assert sorted(path.name for path in (stored / "datasets/bottles").iterdir()) == sorted(
        ["train.bin", "val.bin", "tokenizer.json", "manifest.json"]
    )
    assert [record["step"] for record in records_of(service, "bottles-1", "eval")] == [250, 500, 750, 1000]
    assert (tmp_path / "runs/modal-bottles-1/loss.png").read_bytes() == (
        stored / "runs/bottles-1/loss.png"
    ).read_bytes()

    # what is rented is said before the first container, and what it costs at most
    assert printed.index("renting 1 x L4") < printed.index("training runs/bottles-1")
    assert re.search(r"training and sampling together cost at most \$\d+\.\d\d\n", printed)

    assert {function: "torch==" in image for function, image in images_of(service).items()} == {
        "prepare_data": False,
        "train": True,
        "sample": True,
    }

    # only the training can read what was compiled, and nothing was
    assert [len(container.volumes) for container in service.containers] == [1, 2, 1]
    assert not list(service.volume(f"{VOLUME_NAME}-compiled").iterdir())

    # the Image of the benchmark is not built
    assert not any("nanoGPT" in command for image in service.images for command in image.dockerfile_commands)

    # one secret with the two variables of this machine, one that is stored at Modal
    local, named = [request for rpc, request in service.calls if rpc == "SecretGetOrCreate"][:2]
    assert dict(local.env_dict) == {"WANDB_API_KEY": "from-file", "HF_TOKEN": "from-environment"}
    assert (named.deployment_name, dict(named.env_dict)) == ("stored-at-modal", {})

    # the printed command downloads a run that can be sampled on this machine
    printed = modal_run(service, f"{APP}::bring", *command.split()[3:], cwd=tmp_path)
    (sampling,) = [line.split(": ", 1)[1] for line in printed.splitlines() if line.startswith("sample from it: ")]
    assert (tmp_path / "runs/modal-bottles-1/last.safetensors").read_bytes() == read_last(service, "bottles-1")
    assert len(service.containers) == 3  # none to download it
    monkeypatch.chdir(tmp_path)
    assert main([*sampling.split()[1:], "--start=green", "--max_new_tokens=5"]) == 0
    assert capsys.readouterr().out.startswith("green")


@pytest.mark.slow  # test_jobs and test_plans test the parts
def test_own_text_has_the_recipe_of_ones_own_machine(prepared, tmp_path, monkeypatch):
    options = {**SMALL, "batch_size": 32, "ngram": 1, "preset": None}
    flags = to_flags({name: value for name, value in options.items() if value is not None})
    printed, timed = map_in_pairs(
        lambda arguments: modal_run(prepared, *arguments),
        (f"{APP}::train", "--dataset=bottles", "--out-dir=whole", *flags),
        (APP, "--dataset=bottles", "--out-dir=timed", *flags, "--minutes=0.05", "--num-samples=1"),
    )
    undisturbed = train_without_modal(prepared, tmp_path / "work", monkeypatch, out_dir="runs/bottles", **options)
    assert read_last(prepared, "whole") == (undisturbed.out_dir / "last.safetensors").read_bytes()
    for run, text in (("whole", printed), ("timed", timed)):
        (result,) = records_of(prepared, run, "result")
        assert text.splitlines().count(for_modal(result["verdict"])) == 2, "of the container, and of this machine"
    assert json.loads(next(line for line in printed.splitlines() if line.startswith("{")))["verdict"]
    (done,) = records_of(prepared, "timed", "done")
    assert done["reason"] == "max_iters"
    assert done["seconds"] < 30


@pytest.mark.slow  # other tests cover most of it
def test_each_function_as_a_command(prepared):
    name = ["--out-dir", "mine"]
    map_in_pairs(
        lambda arguments: modal_run(prepared, *arguments, env={"NANOGPT_GPU": "T4,L4"}),
        (f"{APP}::prepare_data", "--dataset", "python_docs"),
        (f"{APP}::train", "--dataset=bottles", *name, *FLAGS, "--max-iters=4"),
    )
    assert (prepared.volume(VOLUME_NAME) / "datasets/python_docs/train.bin").is_file()
    options = json.loads((prepared.volume(VOLUME_NAME) / "runs/mine/config.json").read_text())["config"]
    assert {key: options[key] for key in SMALL if key in options} == {
        key: value for key, value in SMALL.items() if key in options
    }
    assert {"block_size", "n_layer", "n_head", "n_embd", "batch_size"} <= options.keys()
    resume = ["--init-from", "resume", "--max-iters=8", "--device=cpu"]
    modal_run(prepared, f"{APP}::train", *name, *resume, env={"NANOGPT_GPU": "H100"})
    assert [record["step"] for record in records_of(prepared, "mine", "done")] == [4, 8]
    assert prepared.containers[-1].gpu_type == "H100"
    evaluated, sampled = map_in_pairs(
        lambda arguments: modal_run(prepared, *arguments, "--device=cpu"),
        (f"{APP}::evaluate",),
        (f"{APP}::sample", *name, "--start", "10 green", "--num-samples=2", "--max-new-tokens=7"),
    )
    result = json.loads(next(line for line in evaluated.splitlines() if line.startswith("{")))
    assert result["step"] == 8
    assert sampled.count("10 green") == 2


@pytest.mark.slow  # test_calls and test_jobs test both without Modal's client
def test_a_training_without_a_name_is_a_new_run_also_when_two_start_at_once(prepared):
    train = (f"{APP}::train", "--dataset=bottles", *FLAGS, "--eval-interval=4")
    printed = map_in_pairs(
        lambda arguments: modal_run(prepared, *arguments),
        (*train, "--max-iters=4", "--gpu=T4", "--max-dollars=0.1"),
        (*train, "--max-iters=8", "--gpu=h100:2", "--timeout=30m"),
    )
    assert stored_runs(prepared) == ["bottles-1", "bottles-2"]
    results = [json.loads(next(line for line in text.splitlines() if line.startswith("{"))) for text in printed]
    assert sorted(result["run"] for result in results) == ["bottles-1", "bottles-2"]
    assert [result["step"] for result in results] == [4, 8]
    for result in results:
        assert [record["step"] for record in records_of(prepared, result["run"], "done")] == [result["step"]]
        reserved = prepared.dict("nanogpt-lite-calls")[f"runs/{result['run']}"]
        owners = (prepared.volume(VOLUME_NAME) / "runs" / result["run"] / "owners").read_text().split()
        assert owners == [reserved]

    # Modal's own limit is 5 minutes later than the one that was asked for, so that the run is saved before it
    cheap, fast = sorted(prepared.containers, key=lambda container: container.gpu_count)
    dollars_per_hour = 0.59 + 4 * 3600 * 0.0000131 + 8 * 3600 * 0.00000222  # a T4, with 4 cores and 8 GiB
    assert (cheap.gpu_type, cheap.timeout) == ("T4", 300 + int(0.1 / dollars_per_hour * 3600))
    assert (fast.gpu_type, fast.gpu_count, fast.timeout) == ("H100", 2, 300 + 30 * 60)
    assert "at most $0.10" in printed[0]


@pytest.mark.slow  # PyTorch compiles a network
def test_what_a_training_compiled_is_stored_apart_from_runs(prepared):
    modal_run(
        prepared, f"{APP}::train", "--dataset=bottles", "--out-dir=mine", *FLAGS, "--max-iters=4", "--compile=True"
    )
    (start,) = records_of(prepared, "mine", "start")
    assert start["fallbacks"] == []
    (archive,) = prepared.volume(f"{VOLUME_NAME}-compiled").iterdir()
    with tarfile.open(archive) as stored:
        assert any(name.startswith("fxgraph/") for name in stored.getnames())
    assert stored_runs(prepared) == ["mine"]


@pytest.mark.slow
def test_only_one_of_two_trainings_with_the_same_new_name_starts(prepared):
    train = (f"{APP}::train", "--dataset=bottles", "--out-dir=mine", *FLAGS, "--max-iters=1000")
    processes = map_in_pairs(lambda words: run_command(prepared, *train, *words), ["--seed=1"], ["--seed=2"])
    assert sorted(process.returncode for process in processes) == [0, 2]
    (failed,) = [process for process in processes if process.returncode]
    assert re.fullmatch(r"error: another call has started to train the run 'mine'.*--out-dir.*\n", failed.stderr)
    assert functions_of(prepared.containers) == ["train", "train"]
    assert [record["step"] for record in records_of(prepared, "mine", "done")] == [1000]


@pytest.mark.slow  # the parts are tested without Modal's client too
def test_resumed_run_gets_changed_options_with_a_warning_that_names_each(prepared, tmp_path, monkeypatch):
    folder = prepared.volume(VOLUME_NAME) / "runs/mine"
    train_without_modal(prepared, tmp_path / "work", monkeypatch, out_dir=folder, max_iters=4, eval_interval=4, **SMALL)
    changed = ["--max-iters=8", "--learning-rate=2e-3", "--device=cpu"]
    printed = modal_run(prepared, f"{APP}::train", "--out-dir=mine", "--init-from=resume", *changed)
    (warning,) = [line for line in printed.splitlines() if "warning: changed options" in line]
    assert "max_iters 4 -> 8" in warning
    assert "learning_rate 0.001 -> 0.002" in warning
    config = json.loads((folder / "config.json").read_text())["config"]
    assert (config["max_iters"], config["learning_rate"]) == (8, 2e-3)
    assert [record["step"] for record in records_of(prepared, "mine", "done")] == [4, 8]


@pytest.mark.slow  # the parts are tested without Modal's client too
def test_runs_are_listed_brought_and_deleted_without_a_container(prepared, tmp_path, monkeypatch):
    folder = prepared.volume(VOLUME_NAME) / "runs"
    run = train_without_modal(
        prepared, tmp_path / "work", monkeypatch, out_dir=folder / "old", max_iters=2, eval_interval=2, **SMALL
    )
    seconds = {"call-1": {"gpu": "T4", "count": 2, "seconds": 3600, "attempts": 1}}
    (folder / "old/gpu_time.json").write_text(json.dumps(seconds))
    modal_run(prepared, f"{APP}::train", "--dataset=bottles", *FLAGS, "--max-iters=2", "--eval-interval=2")
    n_containers = len(prepared.containers)

    table = [line.split() for line in modal_run(prepared, f"{APP}::runs").splitlines()]
    old, new = [row for row in table if row[0] in ("old", "bottles-1")]
    assert [old[0], new[0]] == ["old", "bottles-1"]  # the newest last
    assert old[1:3] == ["bottles", "2"]
    assert float(old[3]) == pytest.approx(run.best_val_loss, abs=5e-5)
    # two T4 at $0.59 an hour, each with 4 cores and 8 GiB, at Modal's prices of these
    assert float(old[5]) == pytest.approx(2 * (0.59 + 4 * 3600 * 0.0000131 + 8 * 3600 * 0.00000222), abs=0.011)

    home = tmp_path / "home"
    home.mkdir()
    modal_run(prepared, f"{APP}::bring", cwd=home)  # the newest
    stored = {path.name: path.read_bytes() for path in (folder / "bottles-1").iterdir() if path.name != "owners"}
    assert {path.name: path.read_bytes() for path in (home / "runs/modal-bottles-1").iterdir()} == stored
    modal_run(prepared, f"{APP}::bring", "--out-dir=old", "--to=here", cwd=home)
    assert (home / "here/last.safetensors").read_bytes() == read_last(prepared, "old")

    modal_run(prepared, f"{APP}::delete", "--out-dir=bottles-1")
    assert stored_runs(prepared) == ["old"]
    assert "runs/bottles-1" not in prepared.dict("nanogpt-lite-calls")  # the name is free again
    assert len(prepared.containers) == n_containers


@pytest.mark.filterwarnings("ignore:The .* function is executing locally")  # without the Volume
@pytest.mark.parametrize(
    ("function", "module", "job"),
    [
        ("prepare_data", prepare_job, "prepare_and_push"),
        ("train", jobs, "train_job"),
        ("sample", jobs, "sample_job"),
        ("evaluate", jobs, "evaluate_job"),
    ],
)
def test_each_function_spells_options_of_library_errors_as_modal_does(function, module, job, monkeypatch):
    def fail(*arguments, **options):
        raise ng.UserError("give another `out_dir`, or `overwrite=True`")

    monkeypatch.syspath_prepend(ROOT)
    app = importlib.import_module("modal_app")
    monkeypatch.setattr(module, job, fail)
    with pytest.raises(ng.UserError, match="^give another --out-dir, or --overwrite$"):
        getattr(app, function).local()


@pytest.mark.parametrize(
    ("command", "flags"),
    [(name, {}) for name in ("main", "prepare_data", "train", "sample", "evaluate", "sweep", "runs", "bring")]
    + [("delete", {"out_dir": "far"})],
)
def test_each_command_shows_library_errors_as_one_line_as_modal_spells_options(command, flags, monkeypatch, capsys):
    def fail():
        raise ng.UserError("give fewer `num_samples`")

    monkeypatch.syspath_prepend(ROOT)
    app = importlib.import_module("modal_app")
    monkeypatch.setattr(app, "stored_files", fail)
    with pytest.raises(SystemExit, match="^2$"):
        getattr(app, command)(**flags)
    assert capsys.readouterr().err == "error: give fewer --num-samples\n"


def test_help_lists_the_options_in_the_order_of_the_library():
    help_text = subprocess.run(
        [sys.executable, "-m", "modal", "run", f"{APP}::train", "--help"], capture_output=True, text=True, check=True
    ).stdout
    flags = [line.split()[0] for line in help_text.splitlines() if line.startswith("  --")]
    expected = [f"--{name.replace('_', '-')}" for name in TrainConfig.names()]
    assert [flag for flag in flags if flag in expected] == expected
    assert {"--gpu", "--timeout", "--max-dollars"} <= set(flags)
    assert "--learning-rate FLOAT" in help_text
    assert "--compile [True|False]" in help_text


def test_the_documentation_is_right_about_commands_prices_and_memory():
    shown = {" ".join(words): words for page in documentation.PAGES for words in documentation.modal_commands(page)}
    assert len(shown) > 20
    assert {"modal setup", "modal run modal_app.py", "modal deploy modal_app.py"} <= shown.keys()
    flags: dict[tuple[str, ...], set[str]] = {}  # of all lines that run one command of modal_app.py; of the others none
    for words in shown.values():
        if words[1] == "run":
            (place,) = [number for number, word in enumerate(words) if word.startswith("modal_app.py")]
            names = {word.partition("=")[0] for word in words[place:] if word.startswith("--")}
            flags.setdefault(tuple(words[: place + 1]), set()).update(names)
        elif words != ["modal", "setup"]:
            flags[tuple(words)] = set()

    def show_help(words):
        command = [sys.executable, "-m", *words, "--help"]  # an unknown flag is an error before help is printed
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    for (command, names), done in zip(flags.items(), map_in_pairs(show_help, *flags), strict=True):
        assert done.returncode == 0, (command, done.stderr)
        assert names <= set(re.findall(r"--[a-z-]+", done.stdout)), command
    page = MODAL_PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Z0-9-]+)(?: \(default\))? \| ([\d.]+) \| (\d+) \|$", page, re.MULTILINE)
    assert {name: (float(price), int(memory)) for name, price, memory in rows} == {
        gpu.modal_type: (round(3600 * (gpu.dollars_per_second or 0), 2), (gpu.memory or 0) // GB)
        for gpu in GPUS
        if gpu.modal_type
    }


def test_import_needs_neither_torch_nor_a_network(tmp_path):
    code = "import sys; import modal_app; assert 'torch' not in sys.modules"
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "MODAL_SERVER_URL": "http://127.0.0.1:1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


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
    runs = {name: stored_run(prepared, name).metrics[-1]["step"] for name in stored_runs(prepared)}
    assert sorted(runs.values()) == [20, 40]
    assert runs[table[0].split()[1]] == 40
    trainings = [container for container in prepared.containers if container.function == "train"]
    assert [container.gpu_type for container in trainings] == ["L4"] * 3
    images = images_of(prepared)
    assert "torch==" in images["train"]
    assert "torch==" not in images["sweep"]
    assert "numpy==" in images["sweep"]


@pytest.mark.slow
def test_sweep_of_ones_own_text_has_the_recipe_of_a_training(prepared, tmp_path):
    small = ["--device=cpu", "--n-layer=1", "--n-embd=16", "--block-size=64", "--batch-size=64", "--ngram=1"]
    modal_run(prepared, f"{APP}::train", "--dataset=bottles", *small, "--out-dir=alone", cwd=tmp_path)
    grid = ["--seed=1,2", "--sweep-iters=30", "--out-dir=grid"]
    modal_run(prepared, f"{APP}::sweep", "--dataset=bottles", *small, *grid)
    folder = prepared.volume(VOLUME_NAME) / "runs"
    configs = {
        name: json.loads((folder / name / "config.json").read_text(encoding="utf-8"))["config"]
        for name in stored_runs(prepared)
    }
    alone = configs.pop("alone")
    steps = {config["max_iters"] for config in configs.values()}
    assert (len(configs), steps) == (2, {30, alone["max_iters"]})
    for config in configs.values():
        for option in ("dropout", "weight_decay", "patience", "lr_decay_iters"):
            assert config[option] == alone[option], option


@pytest.mark.slow
def test_sweep_over_tokenizers_stores_the_text_with_each_and_compares_losses_per_byte(prepared, tmp_path):
    (prepared.volume(VOLUME_NAME) / "texts").mkdir()
    shutil.copy(tmp_path / "bottles.txt", prepared.volume(VOLUME_NAME) / "texts")
    printed = modal_run(
        prepared, f"{APP}::sweep", "--dataset=bottles", *FLAGS, "--gpu=L4", "--tokenizer=char,byte",
        "--sweep-iters=2", "--max-iters=4", "--eval-interval=2", "--out-dir=grid",
    )  # fmt: skip
    assert "| run | tokenizer | val loss per byte |" in printed
    table = [line for line in printed.splitlines() if line.startswith("| grid-")]
    assert sorted(line.split(" | ")[1] for line in table) == ["byte", "char"]
    assert {path.name for path in (prepared.volume(VOLUME_NAME) / "datasets").iterdir()} == {"bottles", "bottles-byte"}
    assert functions_of(prepared.containers).count("prepare_data") == 1, "bottles is prepared for characters"


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
    assert "local {'run': 'bottles-1'" in done.stdout
    assert "remote {'run': 'far'" in done.stdout
    assert (tmp_path / "runs/bottles-1/last.safetensors").is_file()


@pytest.mark.slow  # the commands test the same Functions
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
    (shown,) = [block for block in documentation.code_blocks(MODAL_PAGE, "python") if "Sampler" in block]
    (run,) = re.findall(r'run="(shakespeare_char[-\w]*)"\)', shown)
    assert 'start="ROMEO:", num_samples=3)' in shown
    shown = shown.replace(f'run="{run}"', 'run="far", device="cpu"')
    shown = shown.replace('"ROMEO:", num', '"green", max_new_tokens=3, num')
    user.write_text(
        shown
        + """
print(sampler.sample.remote(start="green", num_samples=2, max_new_tokens=3))
print("".join(sampler.stream.remote_gen(start="green", max_new_tokens=3)))
evaluate, train = (modal.Function.from_name("nanogpt-lite", name) for name in ("evaluate", "train"))
print("at step", evaluate.remote(out_dir="far", device="cpu")["step"])
train.remote(out_dir="far", init_from="resume", max_iters=4, device="cpu")
print("at step", evaluate.remote(out_dir="far", device="cpu")["step"])
"""
        + the_spawn_of_the_documentation()
    )
    done = prepared.python(user, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("green") == 4
    functions = functions_of(prepared.containers)
    assert functions.count("Sampler.*") == 1
    # a warm container sees what another container trained in the meantime
    assert functions.count("evaluate") == 1
    assert "at step 2\nat step 4\n" in done.stdout
    assert "{'run': 'bottles-1', 'step': 2, 'reason': 'max_iters', 'best_val_loss': " in done.stdout


def the_spawn_of_the_documentation():
    """The program on the page that starts a training of the deployed app, with a small network."""
    (shown,) = [block for block in documentation.code_blocks(MODAL_PAGE, "python") if ".spawn(" in block]
    options = {"dataset": "bottles", "max_iters": 2, "device": "cpu", **SMALL}
    called = 'dataset="shakespeare_char", max_iters=2000'
    assert called in shown
    return shown.replace(called, f"**{options}")


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
