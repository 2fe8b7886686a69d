"""modal_app.py on a Modal of our own: the real command and real containers, on CPUs. See `local_modal`."""

import ast
import json
import random
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import documentation
import pytest
from conftest import TEXT

import nanogpt_lite as ng
from nanogpt_lite.cli.main import main
from nanogpt_lite.config.options import TrainConfig

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

from local_modal import LocalModal

ROOT = Path(__file__).parents[2]
APP = ROOT / "modal_app.py"
MODAL_PAGE = ROOT / "docs/modal.md"
SMALL = {"block_size": 8, "batch_size": 2, "n_layer": 1, "n_head": 2, "n_embd": 8, "threads": 1}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
STORED = "nanogpt-lite"  # the Volume


@pytest.fixture
def service(tmp_path, request):
    kept = {"kept": {"WANDB_API_KEY": "at-modal"}}
    with LocalModal(tmp_path / "modal", secrets=kept, exit_commits=getattr(request, "param", False)) as service:
        yield service


@pytest.fixture
def texts(service, tmp_path):
    """The service, with a text on the Volume that is prepared already."""
    (tmp_path / "bottles.txt").write_text(TEXT)
    (tmp_path / "work").mkdir()
    prepared = ng.prepare(tmp_path / "bottles.txt", out_dir=service.volume(STORED) / "datasets" / "bottles")
    assert prepared.path.is_dir()
    return service


def run(service, *arguments, code=0, **options):
    done = service.modal("run", *arguments, timeout=120, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def together(call, *arguments):
    """What `call` gives for each of the arguments, two at a time: most of it is waiting for PyTorch to be imported."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(call, arguments))


def train_here(service, folder, monkeypatch, **options):
    """A run of this process in `folder`, on the text on the Volume, as seen from there."""
    monkeypatch.chdir(folder)
    Path("data").mkdir()
    Path("data/bottles").symlink_to(service.volume(STORED) / "datasets/bottles")
    return ng.train("data/bottles", preset="tutorial", **options)


def last_of(service, name):
    return (service.volume(STORED) / "runs" / name / "last.safetensors").read_bytes()


def evaluated(output):
    """The step of the last evaluation that a container told of."""
    return max((int(line.split()[1][:-1]) for line in output.splitlines() if line.startswith("step ")), default=0)


def test_the_whole_road_with_the_tutorials_lengths(service, tmp_path, monkeypatch, capsys):
    (tmp_path / "bottles.txt").write_text(TEXT)
    (tmp_path / ".env").write_text("WANDB_API_KEY=from-file\nHF_TOKEN=from-file\nBANK=mine\n")
    env = {"HF_TOKEN": "from-environment", "NANOGPT_SECRET": "kept"}
    printed = run(service, APP, "--dataset", "bottles.txt", "--gpu=L4", *FLAGS, cwd=tmp_path, env=env)
    assert [container.function for container in service.containers] == ["prepare_data", "train", "sample"]
    assert [container.gpu_type for container in service.containers] == ["", "L4", "L4"]
    samples = printed[printed.rindex("--out_dir bottles") :].split("---------------")
    assert len(samples) == 3
    assert all(len(sample) > 300 for sample in samples)
    home = service.volume(STORED)
    assert sorted(path.name for path in (home / "datasets/bottles").iterdir()) == sorted(
        ["train.bin", "val.bin", "tokenizer.json", "manifest.json"]
    )
    metrics = ng.Run(home / "runs/bottles").metrics
    assert [record["step"] for record in metrics if record["kind"] == "eval"] == [250, 500, 750, 1000]

    # the secrets are those two and the named one
    own, named = [request for rpc, request in service.calls if rpc == "SecretGetOrCreate"][:2]
    assert dict(own.env_dict) == {"WANDB_API_KEY": "from-file", "HF_TOKEN": "from-environment"}
    assert (named.deployment_name, dict(named.env_dict)) == ("kept", {})

    # what comes home by the printed command is a run like any other
    (command,) = [line.split("home: ")[1] for line in printed.splitlines() if "bring it home" in line]
    get, sample = (part.split() for part in command.split(" && "))
    assert service.modal(*get[1:], cwd=tmp_path).returncode == 0
    assert (tmp_path / "bottles/last.safetensors").read_bytes() == last_of(service, "bottles")
    monkeypatch.chdir(tmp_path)
    assert main([*sample[1:], "--start=green", "--max_new_tokens=5"]) == 0
    assert capsys.readouterr().out.startswith("green")


@pytest.mark.slow  # the tests beside it do most of it another way
def test_each_step_alone(texts, tmp_path):
    name, of_train = ["--out-dir", "mine"], (f"{APP}::train", "--dataset=bottles")
    together(
        lambda arguments: run(texts, *arguments, env={"NANOGPT_GPU": "T4,L4"}),
        (f"{APP}::prepare_data", "--dataset", "python_docs"),
        (*of_train, *name, *FLAGS, "--max-iters=4"),
    )
    assert (texts.volume(STORED) / "datasets/python_docs/train.bin").is_file()
    options = json.loads((texts.volume(STORED) / "runs/mine/config.json").read_text())["config"]
    assert {key: options[key] for key in SMALL} == SMALL
    run(texts, f"{APP}::train", *name, "--max-iters=8", env={"NANOGPT_GPU": "H100"})  # goes on
    steps = [r["step"] for r in ng.Run(texts.volume(STORED) / "runs/mine").metrics if r["kind"] == "done"]
    assert steps == [4, 8]
    assert texts.containers[-1].gpu_type == "H100"
    evaluated, sampled = together(
        lambda arguments: run(texts, *arguments),
        (f"{APP}::evaluate",),
        (f"{APP}::sample", *name, "--start", "10 green", "--num-samples=2", "--max-new-tokens=7"),
    )
    result = ast.literal_eval(next(line for line in evaluated.splitlines() if line.startswith("{")))
    assert result["step"] == 8
    assert sampled.count("10 green") == 2


def test_what_goes_wrong_is_said(texts, tmp_path):
    said = {
        (f"{APP}::sample", "--out-dir", "nothing"): "there is no checkpoint of a run 'nothing'; train it: modal run",
        (f"{APP}::sweep", "--out-dir", "../secrets", "--learning-rate=1"): "no plain name",
        (APP, "--dataset=bottles", "--gpu=L4:3"): "64 rows .* cannot be shared equally by 3 ranks",
        (APP, "--dataset=bottles", "--n-embd=10"): "multiple",
        (APP, "--dataset=bottles", "--gpu=T4,L4"): "set NANOGPT_GPU=T4,L4",
        (f"{APP}::train", "--learning-rat=1"): "No such option",
        (f"{APP}::train", "--max-iters=many"): "not a valid integer",
    }
    ended = together(lambda arguments: texts.modal("run", *arguments), *said)
    for done, message in zip(ended, said.values(), strict=True):
        assert re.search(message, " ".join((done.stdout + done.stderr).split()))
    assert [done.returncode for done in ended] == [1, 1, 1, 1, 1, 2, 2]
    assert not [one for one in texts.containers if one.function == "prepare_data"]


def test_help_lists_the_options_in_the_librarys_order():
    shown = subprocess.run(
        [sys.executable, "-m", "modal", "run", f"{APP}::train", "--help"], capture_output=True, text=True, check=True
    ).stdout
    flags = [line.split()[0] for line in shown.splitlines() if line.startswith("  --")]
    expected = [f"--{name.replace('_', '-')}" for name in TrainConfig.names()]
    assert [flag for flag in flags if flag in expected] == expected
    assert "--learning-rate FLOAT" in shown
    assert "--compile / --no-compile" in shown


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

    def understood(words):
        command = [sys.executable, "-m", *words, "--help"]  # which comes after every flag was understood
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert [done.stderr for done in together(understood, *lines) if done.returncode] == []
    page = MODAL_PAGE.read_text(encoding="utf-8")
    listed = {
        name.strip(): float(price)
        for names, prices in re.findall(r"^\| ([A-Z][^|]*\d[^|]*) \| ([\d., ]+) \|", page, re.MULTILINE)
        for name, price in zip(names.replace(" (default)", "").split(","), prices.split(","), strict=True)
    }
    namespace = runpy.run_path(str(APP))
    assert listed == {name: round(3600 * price, 2) for name, price in namespace["PRICES"].items()}
    assert namespace["price_of"]("NVIDIA A100-SXM4-80GB") == namespace["PRICES"]["A100-80GB"]
    assert namespace["price_of"]("NVIDIA L40S") == namespace["PRICES"]["L40S"]
    assert namespace["price_of"]("Tesla T4") == namespace["PRICES"]["T4"]
    assert namespace["price_of"]("NVIDIA RTX PRO 6000 Blackwell Server Edition") == 0.000842
    assert namespace["price_of"]("no GPU") is None


def test_import_takes_neither_torch_nor_a_network(tmp_path):
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
def test_preempted_and_killed_at_random_moments_it_ends_with_the_same_file(texts, ends, tmp_path, monkeypatch):
    options = {**SMALL, "max_iters": 150, "eval_interval": 10, "dropout": 0.1}
    dice = random.Random()
    moments = sorted(dice.sample(range(1, 11), ends))  # evaluations
    killed = dice.randrange(ends)
    print("moments", moments, "killed at number", killed)
    client = texts.popen_modal(
        "run", f"{APP}::train", "--dataset=bottles", *[f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
    )
    for number, moment in enumerate(moments):
        texts.wait_for(lambda n=number: len(texts.containers) > n, timeout=60)
        container = texts.containers[number]
        texts.wait_for(lambda one=container, step=10 * moment: evaluated(one.output) >= step, timeout=60)
        (texts.crash if number == killed else texts.preempt)(container)
    assert client.wait(120) == 0, texts.report()
    assert len(texts.containers) == ends + 1
    assert len({container.input_ids[0] for container in texts.containers}) == 1

    undisturbed = train_here(texts, tmp_path / "work", monkeypatch, out_dir="runs/bottles", **options)
    assert last_of(texts, "bottles") == (undisturbed.out_dir / "last.safetensors").read_bytes()


@pytest.mark.slow
def test_several_gpus_are_ranks_that_a_preemption_reaches(texts):
    options = {**SMALL, "batch_size": 8, "eval_interval": 10, "max_iters": 1000}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    client = texts.popen_modal("run", f"{APP}::train", "--dataset=bottles", *flags, env={"NANOGPT_GPU": "A100-80GB:2"})
    texts.wait_for(lambda: any(evaluated(one.output) >= 20 for one in texts.containers), timeout=60)
    first = texts.containers[0]
    assert (first.gpu_type, first.gpu_count) == ("A100-80GB", 2)
    texts.preempt(first)
    assert client.wait(120) == 0, texts.report()
    assert len(texts.containers) == 2
    records = ng.Run(texts.volume(STORED) / "runs/bottles").metrics
    ended = [record for record in records if record["kind"] == "done"]
    started = [record for record in records if record["kind"] == "start"]
    assert [record["ranks"] for record in started] == [2, 2]
    assert [record["reason"] for record in ended] == ["interrupted", "max_iters"]
    assert started[1]["step"] == ended[0]["step"]


@pytest.mark.slow
def test_a_sweep_trains_the_grid_and_carries_the_best_one_on(texts):
    printed = run(
        texts, f"{APP}::sweep", "--dataset=bottles", *FLAGS, "--gpu=L4", "--learning-rate=1e-4,1e-2", "--min-lr=0",
        "--sweep-iters=20", "--max-iters=40", "--eval-interval=20", "--out-dir=grid",
    )  # fmt: skip
    table = [line for line in printed.splitlines() if line.startswith("| grid-")]
    assert [line.split(" | ")[1] for line in table] == ["0.01", "0.0001"]
    (written,) = (texts.volume(STORED) / "sweeps").glob("*.md")
    assert table[0] in written.read_text()
    runs = {path.name: ng.Run(path).metrics[-1]["step"] for path in (texts.volume(STORED) / "runs").iterdir()}
    assert sorted(runs.values()) == [20, 40]
    assert runs[table[0].split()[1]] == 40
    trainings = [container for container in texts.containers if container.function == "train"]
    assert [container.gpu_type for container in trainings] == ["L4"] * 3


@pytest.mark.slow  # it is what the commands do
def test_in_python(texts, tmp_path):
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
    done = texts.python(script, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "local {'run': 'bottles'" in done.stdout
    assert "remote {'run': 'far'" in done.stdout
    assert (tmp_path / "runs/bottles/last.safetensors").is_file()


def test_deployed(texts, tmp_path, monkeypatch):
    train_here(texts, tmp_path / "work", monkeypatch, out_dir=texts.volume(STORED) / "runs/far", max_iters=2, **SMALL)
    assert texts.modal("deploy", APP).returncode == 0
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
    done = texts.python(user, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("green") == 4
    functions = [container.function for container in texts.containers]
    assert functions.count("Sampler.*") == 1
    # a container that stays sees what another one has trained since
    assert functions.count("evaluate") == 1
    assert "at step 2\nat step 4\n" in done.stdout
