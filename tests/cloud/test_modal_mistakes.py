"""Mistakes of a user of modal_app.py: one line says what is wrong and what to do, before anything is rented.

Each is a command of the real client on a machine with the package modal alone. See `modal_commands`.
"""

import re
import shutil
import sys

import pytest

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

import modal_commands
from conftest import TEXT
from local_modal import LocalModal
from modal_commands import (
    FLAGS,
    SMALL,
    VOLUME_NAME,
    functions_of,
    map_in_pairs,
    prepare_bottles,
    run_command,
    stored_runs,
    train_without_modal,
)

import nanogpt_lite as ng

prepared = modal_commands.prepared  # a fixture, which needs the next one
service = modal_commands.service
APP = str(modal_commands.APP)
LONG_NAME = "x" * 101
PROGRESS = ("✓", "├──", "└──", "Stopping app", "View run")  # lines of Modal's client

# Each mistake: the words after `modal run`, FILE being modal_app.py, and what the line says that it ends with.
OURS: dict[str, tuple[str, str]] = {
    # values and their types
    "n_embd is no multiple of n_head": (
        "FILE::train --n-embd=10",
        r"--n-embd 10 is not a multiple of --n-head 6.*--n-embd 12",
    ),
    "min_lr above the learning rate": (
        "FILE::train --learning-rate=1e-5",
        "--min-lr 0.0001 is above --learning-rate 1e-05.*--min-lr",
    ),
    "no steps": ("FILE::train --max-iters=0", "max.iters.*0.*1"),
    "negative batch size": ("FILE::train --batch-size=-1", "batch.size.*-1"),
    "dropout of 1": ("FILE::train --dropout=1", "dropout.*1"),
    "block size that is too large": ("FILE::train --block-size=1048576", "too large together.*--block-size"),
    "learning rate of 0": ("FILE::train --learning-rate=0", "learning.rate.*0"),
    "learning rate that is not a number": ("FILE::train --learning-rate=nan", "learning.rate.*nan"),
    "unknown preset": ("FILE::train --preset=large", "unknown preset 'large'"),
    "unknown tokenizer": ("FILE::train --tokenizer=words", "tokenizer.*words"),
    "tokenizer with too few tokens": ("FILE::train --tokenizer=bpe-100", "tokenizer.*bpe-100"),
    "too many layers": ("FILE::train --n-layer=99999999999999999999", "n.layer.*1000"),
    "infinite learning rate": ("FILE::train --learning-rate=1e400", "learning.rate.*inf"),
    "negative seed": ("FILE::train --seed=-1", "seed.*-1"),
    "too many threads": ("FILE::sample --threads=5000", "threads.*5000"),
    # what is rented
    "empty GPU": ("FILE::train --dataset=bottles --gpu=", "--gpu is empty"),
    "unknown GPU": ("FILE::train --gpu=RTX4090", "unknown GPU 'RTX4090'"),
    "misspelt GPU": ("FILE --gpu=A100-4OGB", "unknown GPU 'A100-4OGB'.*A100-40GB"),
    "no GPUs": ("FILE::train --gpu=T4:0", "--gpu T4:0.*number of GPUs"),
    "nine GPUs": ("FILE::train --gpu=T4:9", "--gpu T4:9.*number of GPUs.*8"),
    "number of GPUs that is none": ("FILE::train --gpu=T4:x", "--gpu T4:x.*number of GPUs"),
    "list of GPUs": ("FILE --dataset=bottles --gpu=T4,L4", "NANOGPT_GPU=T4,L4"),
    "batch that three GPUs cannot share": (
        "FILE --dataset=bottles --gpu=L4:3",
        "64 rows .* cannot be shared equally by 3",
    ),
    "several GPUs to sample": ("FILE::sample --gpu=T4:2", "only a training uses several"),
    "several GPUs to evaluate": ("FILE::evaluate --gpu=T4:2", "only a training uses several"),
    "time that is none": ("FILE::train --timeout=soon", "--timeout soon.*30m"),
    "too short a time": ("FILE::train --timeout=5s", "--timeout 5s.*1m to 24h"),
    "too long a time": ("FILE::train --timeout=25h", "--timeout 25h.*1m to 24h"),
    "time in two units": ("FILE::train --timeout=1h30m", "--timeout 1h30m.*90s"),
    "negative time": ("FILE::train --timeout=-1h", "--timeout -1h"),
    "dollars that are not a number": ("FILE::train --max-dollars=nan", "--max-dollars nan"),
    "no dollars": ("FILE::train --max-dollars=0", "--max-dollars 0"),
    "negative dollars": ("FILE::train --max-dollars=-1", "--max-dollars -1"),
    "dollars that pay nothing": ("FILE::train --max-dollars=0.001", "--max-dollars 0.001.*less than a minute"),
    "too few dollars for the pipeline": ("FILE --dataset=bottles --max-dollars=0.01", "--max-dollars 0.01 .*minute"),
    "too few dollars for a sweep": (
        "FILE::sweep --dataset=bottles --learning-rate=1e-4,1e-3 --max-dollars=0.1",
        "--max-dollars 0.1 .*minute",
    ),
    # texts
    "missing text": ("FILE --dataset=missing.txt", "there is no text 'missing.txt'.*bottles"),
    "empty text": ("FILE --dataset=empty.txt", "empty.txt has 0 characters, too few"),
    "text that is not UTF-8": ("FILE --dataset=latin.txt", "latin.txt is not UTF-8.*iconv"),
    "text that is a program": ("FILE::prepare_data --dataset=binary.txt", "binary.txt is not UTF-8"),
    "text shorter than a block": ("FILE --dataset=short.txt", "too short for block_size=256.*--block-size"),
    "stored text shorter than a block": (
        "FILE::train --dataset=bottles --block-size=65536",
        "too short for block_size=65536",
    ),
    "folder without texts": ("FILE --dataset=folder", "no files to read in 'folder'"),
    "text in place of its path": (f"FILE --dataset={'to_be_or_not_to_be_' * 60}", "not a name or path"),
    "text whose name is no name": ("FILE --dataset=" + LONG_NAME + ".txt", "invalid dataset name"),
    "empty name of a text": ("FILE::train --dataset=", "dataset.*empty"),
    "folder with other files": ("FILE --dataset=.", "not UTF-8"),
    "address without a host": ("FILE --dataset=http://[", "not a valid URL"),
    "address that is not of the web": (
        "FILE --dataset=ftp://example.org/x.txt",
        "there is no text 'ftp://example.org/x.txt'",
    ),
    # names of runs
    "current folder as a run": ("FILE::train --out-dir=.", "invalid run name '.'"),
    "sweep without a name": ("FILE::sweep --out-dir= --n-layer=1,2", "invalid run name ''"),
    "names of several sweeps": ("FILE::sweep --out-dir=a,b --n-layer=1,2", "invalid run name 'a,b'"),
    "run outside of the Volume": ("FILE::train --out-dir=../x", "invalid run name '../x'"),
    "run in a folder": ("FILE::train --out-dir=a/b", "invalid run name 'a/b'"),
    "run with a long name": (f"FILE::train --out-dir={LONG_NAME}", "invalid run name 'xxx"),
    "sweep outside of the Volume": ("FILE::sweep --out-dir=../x --learning-rate=1e-4,1e-3", "invalid run name '../x'"),
    "delete outside of the Volume": ("FILE::delete --out-dir=../datasets", "no run '../datasets'"),
    "delete nothing": ("FILE::delete --out-dir=", "no run ''"),
    "run that exists": (
        "FILE::train --dataset=bottles --out-dir=done",
        "'done' exists.*--init-from resume.*--overwrite",
    ),
    "run that exists, for the pipeline": ("FILE --dataset=bottles --out-dir=done", "'done' exists"),
    "overwrite without a name": (
        "FILE::train --dataset=bottles --overwrite",
        "--overwrite replaces the run of a name.*--out-dir",
    ),
    # resuming
    "resume a missing run": ("FILE::train --out-dir=gone --init-from=resume", "no checkpoint of a run 'gone'.*done"),
    "resume a finished run": (
        "FILE::train --out-dir=done --init-from=resume",
        "'done' has all of its 4 steps.*--max-iters",
    ),
    "resume to fewer steps": (
        "FILE::train --out-dir=done --init-from=resume --max-iters=2",
        "step 4, beyond max_iters=2",
    ),
    "resume with another network": (
        "FILE::train --out-dir=done --init-from=resume --max-iters=8 --n-layer=2",
        r"another network.*n_layer=2 \(the run has 1\)",
    ),
    "resume and overwrite": (
        "FILE::train --out-dir=done --init-from=resume --overwrite",
        "--init-from resume continues.*--overwrite",
    ),
    "resume on another missing text": (
        "FILE::train --out-dir=done --init-from=resume --max-iters=8 --dataset=missing",
        "there is no text 'missing'",
    ),
    "start from a missing run": ("FILE::train --init-from=gone", "no checkpoint of a run 'gone'"),
    "start from another network": (
        "FILE::train --dataset=bottles --init-from=done --n-embd=12",
        "another network.*n_embd=12",
    ),
    # sampling and evaluating
    "sample from an unknown run": ("FILE::sample --out-dir=gone", "no checkpoint of a run 'gone'; runs with one: done"),
    "sample from an unknown checkpoint": ("FILE::sample --checkpoint=step_000007", "no checkpoint 'step_000007'.*last"),
    "evaluate an unknown run": ("FILE::evaluate --out-dir=gone", "no checkpoint of a run 'gone'"),
    "evaluate on a missing text": ("FILE::evaluate --dataset=missing", "there is no text 'missing'"),
    "prompt with an unknown character": (
        "FILE::sample --start=ROMEO:",
        r"'R' \(U\+0052\).*characters of the text bottles",
    ),
    "prompt unknown to a text": ("FILE --dataset=new.txt --start=10", r"'1' \(U\+0031\).*characters of the text new"),
    "prompt unknown to Shakespeare": (
        "FILE --start=2B",
        r"'2' \(U\+0032\).*65 characters of the text shakespeare_char",
    ),
    "missing file of a prompt": ("FILE::sample --start=FILE:gone.txt", "prompt file 'gone.txt' cannot be read"),
    "empty file of a prompt": ("FILE::sample --start=FILE:empty.txt", "prompt file 'empty.txt' is empty"),
    "file of a prompt that is not UTF-8": (
        "FILE::sample --start=FILE:latin.txt",
        "prompt file 'latin.txt' cannot be read.*UTF-8",
    ),
    "folder in place of a prompt": ("FILE::sample --start=FILE:folder", "prompt file 'folder' cannot be read"),
    "empty prompt": ("FILE::sample --start=", "start.*empty"),
    "negative temperature": ("FILE::sample --temperature=-1", "temperature.*-1"),
    "probability above 1": ("FILE::sample --top-p=2", "top.p.*2"),
    "no samples": ("FILE::sample --num-samples=0", "num.samples.*0"),
    "no tokens": ("FILE --dataset=bottles --max-new-tokens=0", "max.new.tokens.*0"),
    # secrets
    "wandb without a key": ("FILE::train --dataset=bottles --wandb-log=True", "--wandb-log needs a key.*WANDB_API_KEY"),
    "wandb without a key, for a sweep": (
        "FILE::sweep --dataset=bottles --wandb-log=True --learning-rate=1e-3,2e-3",
        "--wandb-log needs a key",
    ),
    # sweeps
    "sweep with one combination": ("FILE::sweep --dataset=bottles --learning-rate=1e-3", "two combinations or more"),
    "sweep without values": ("FILE::sweep", "two combinations or more"),
    "sweep with a value twice": (
        "FILE::sweep --learning-rate=1e-3,0.001",
        "--learning-rate 1e-3,0.001 has a value twice",
    ),
    "sweep longer than the training": (
        "FILE::sweep --learning-rate=1e-4,1e-3 --sweep-iters=5000",
        "--sweep-iters 5000 is more than --max-iters 1000",
    ),
    "sweep of no steps": ("FILE::sweep --learning-rate=1e-4,1e-3 --sweep-iters=0", "--sweep-iters 0"),
    "sweep with a bad value": ("FILE::sweep --learning-rate=1e-4,fast", "learning.rate.*fast"),
    "sweep with an empty value": ("FILE::sweep --n-layer=2,", "n.layer"),
    "sweep of a missing text": ("FILE::sweep --dataset=missing --n-layer=1,2", "there is no text 'missing'"),
    # runs on the Volume
    "delete an unknown run": ("FILE::delete --out-dir=gone", "no run 'gone' to delete.*done"),
    "bring an unknown run": ("FILE::bring --out-dir=gone", "no checkpoint of a run 'gone'"),
    "bring onto a file": ("FILE::bring --out-dir=done --to=empty.txt", "empty.txt.*--to"),
    "bring into a file": ("FILE::bring --out-dir=done --to=empty.txt/x", "empty.txt.*--to"),
    "bring onto another run": ("FILE::bring --out-dir=done --to=here", "here has a run already.*--to.*--overwrite"),
}
# The same for mistakes that the parser of Modal's client finds. It prints its usage too.
PARSED: dict[str, tuple[str, str]] = {
    "unknown option": ("FILE::train --learning-rat=1", "No such option '--learning-rat'.*--learning-rate"),
    "underscore in an option": ("FILE::train --max_iters=5", "No such option '--max_iters'.*--max-iters"),
    "option of another command": ("FILE::sample --max-iters=5", "No such option '--max-iters'"),
    "steps that are no number": ("FILE::train --max-iters=many", "'many' is not a valid integer"),
    "half a step": ("FILE::train --max-iters=1.5", "'1.5' is not a valid integer"),
    "dollars that are no number": ("FILE::train --max-dollars=ten", "'ten' is not a valid float"),
    "unknown activation": ("FILE::train --activation=relu", "'relu' is not one of 'gelu', 'gelu_tanh', 'relu2'"),
    "unknown optimizer": ("FILE::train --optimizer=sgd", "'sgd' is not one of 'adamw', 'muon'"),
    "a word in place of a truth value": ("FILE::train --compile=maybe", "'maybe' is not one of 'True', 'False'"),
    "value missing": ("FILE::train --max-iters", "requires an argument"),
    "delete without a name": ("FILE::delete", "Missing option '--out-dir'"),
    "value of a switch": ("FILE::train --overwrite=True", "'--overwrite' does not take a value"),
    "command without its colons": ("FILE train", "unexpected extra argument"),
    "option with one dash": ("FILE::train -max-iters=5", "No such option '-m'"),
    "misspelt command": ("FILE::trian", "trian"),
}
QUICK = [  # one of each kind, for the normal suite
    "n_embd is no multiple of n_head", "misspelt GPU", "dollars that pay nothing", "missing text", "run that exists",
    "resume with another network", "prompt with an unknown character", "underscore in an option",
]  # fmt: skip


@pytest.fixture(scope="module")
def used_service(tmp_path_factory):
    """The local Modal with a dataset and a finished run on the Volume, and its folder of a user with some files."""
    folder = tmp_path_factory.mktemp("mistakes")
    with LocalModal(folder / "modal") as service, pytest.MonkeyPatch.context() as monkeypatch:
        prepare_bottles(service, folder)
        user = folder / "user"
        (user / "folder").mkdir(parents=True)
        (user / "empty.txt").touch()
        (user / "new.txt").write_text("a text of letters alone\n" * 100)
        (user / "short.txt").write_text("too short\n" * 4)
        (user / "latin.txt").write_bytes("naïve\n".encode("latin1") * 100)
        (user / "binary.txt").write_bytes(sys.executable.encode() + bytes(range(256)))
        (user / f"{LONG_NAME}.txt").write_text("a text\n" * 100)
        monkeypatch.chdir(folder)
        (folder / "data").mkdir()
        (folder / "data/bottles").symlink_to(service.volume(VOLUME_NAME) / "datasets/bottles")
        run = service.volume(VOLUME_NAME) / "runs/done"
        ng.train("data/bottles", preset="tutorial", out_dir=run, max_iters=4, eval_interval=4, **SMALL)
        shutil.copytree(run, user / "here")
        yield service, user


def words_of(command):
    """A command of the table as arguments of `modal run`. It has no quotes, for no value has a space."""
    file, *rest = command.split(" ")
    return [file.replace("FILE", APP), *rest]


def is_one_line(process, pattern):
    """Whether a command ended with one line of our own that has the pattern, and with the status of a mistake."""
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    return (
        process.returncode == 2
        and "Traceback" not in process.stdout + process.stderr
        and len(errors) == 1
        and len(process.stderr.splitlines()) <= 2
        and re.search(pattern, errors[0])
    )


def is_error_of_parser(process, pattern):
    """Whether a command ended with an error of Modal's own parser that has the pattern."""
    text = process.stdout + process.stderr
    words = " ".join(re.sub("[│╭╰─╮╯]", " ", text).split())
    return process.returncode != 0 and "Traceback" not in text and re.search(pattern, words)


def printed_lines(process):
    """What our own program printed on stdout."""
    return [line for line in process.stdout.splitlines() if line.strip() and not line.startswith(PROGRESS)]


def describe(process):
    return f"status {process.returncode}\n{process.stdout}{process.stderr}"


def check_mistakes(used_service, names):
    """Run the commands, and list what is not as it should be."""
    service, user = used_service
    before = sorted(service.volume(VOLUME_NAME).rglob("*"))
    mistakes = {**OURS, **PARSED}
    processes = map_in_pairs(
        lambda name: run_command(service, *words_of(mistakes[name][0]), cwd=user, env={"WANDB_API_KEY": ""}), *names
    )
    problems = []
    for name, process in zip(names, processes, strict=True):
        command, pattern = mistakes[name]
        if name in OURS:
            is_right = is_one_line(process, pattern) and len(printed_lines(process)) <= 1
        else:
            is_right = is_error_of_parser(process, pattern)
        if not is_right:
            problems.append(f"{name}: {command[:200]}\n  expected {pattern}\n{describe(process)}")
    assert not problems, f"{len(problems)} of {len(names)}\n" + "\n".join(problems)
    assert functions_of(service.containers) == []
    assert sorted(service.volume(VOLUME_NAME).rglob("*")) == before


def test_a_mistake_is_one_line_and_rents_nothing(used_service):
    check_mistakes(used_service, QUICK)


@pytest.mark.slow
def test_every_mistake_is_one_line_and_rents_nothing(used_service):
    names = [name for name in (*OURS, *PARSED) if name not in QUICK]
    assert len(names) >= 50
    check_mistakes(used_service, names)


def test_mistakes_in_the_environment_are_one_line_and_rent_nothing(used_service):
    service, user = used_service
    broken = user / "with_dotenv"
    broken.mkdir()
    (broken / ".env").write_bytes("HF_TOKEN=naïve".encode("utf-16"))
    train = (f"{APP}::train", "--dataset=bottles")
    processes = map_in_pairs(
        lambda call: run_command(service, *call[0], cwd=call[1], env=call[2]),
        (train, broken, {}),
        (train, user, {"NANOGPT_GPU": "RTX4090"}),
        (train, user, {"NANOGPT_GPU": "T4,"}),
        (train, user, {"NANOGPT_GPU": "T4,L4:9"}),
    )
    patterns = [".env cannot be read.*UTF-8", "unknown GPU 'RTX4090'", "unknown GPU ''", "L4:9.*number of GPUs"]
    for process, pattern in zip(processes, patterns, strict=True):
        assert is_one_line(process, pattern), describe(process)
    assert service.containers == []


@pytest.mark.slow  # the parts are tested without Modal's client too
def test_commands_that_need_a_run_say_how_to_train_one(service, tmp_path):
    commands = [("sample",), ("evaluate",), ("bring",), ("train", "--init-from=resume")]
    processes = map_in_pairs(
        lambda command: run_command(service, f"{APP}::{command[0]}", *command[1:], cwd=tmp_path), *commands
    )
    for process in processes:
        assert is_one_line(process, "no run with a checkpoint.*modal run modal_app.py::train"), describe(process)
    process = run_command(service, f"{APP}::delete", "--out-dir=x", cwd=tmp_path)
    assert is_one_line(process, "no run 'x' to delete.*there are no runs"), describe(process)
    assert service.containers == []


@pytest.mark.slow  # test_messages tests how errors are returned
def test_a_mistake_that_only_the_container_finds_is_one_line_without_a_retry(prepared, tmp_path, monkeypatch):
    folder = prepared.volume(VOLUME_NAME)
    train_without_modal(
        prepared, tmp_path / "work", monkeypatch, out_dir=folder / "runs/old", max_iters=2, eval_interval=2, **SMALL
    )
    shutil.copytree(folder / "datasets/bottles", folder / "datasets/damaged")
    ids = bytearray((folder / "datasets/damaged/train.bin").read_bytes())
    ids[100] ^= 1
    (folder / "datasets/damaged/train.bin").write_bytes(ids)
    # since the run `old` was trained, another text has got the name of its text
    (tmp_path / "bottles.txt").write_text(TEXT.replace("wall", "lawl"))
    shutil.rmtree(folder / "datasets/bottles")
    ng.prepare(tmp_path / "bottles.txt", out_dir=folder / "datasets/bottles")
    train = (f"{APP}::train",)
    mistakes = {
        (*train, "--dataset=damaged", *FLAGS): "damaged|changed",
        (*train, "--dataset=bottles", *FLAGS[:-1]): "device='cuda' cannot be used",
        (f"{APP}::sample", "--start=1", "--device=gpu"): "device.*gpu",
    }
    resume = run_command(prepared, *train, "--out-dir=old", "--init-from=resume", "--max-iters=4")
    assert is_one_line(resume, "the text 'bottles' is not the one that the run 'old' was trained on"), describe(resume)
    assert prepared.containers == [], "found on this machine"
    processes = map_in_pairs(lambda command: run_command(prepared, *command), *mistakes)
    for process, pattern in zip(processes, mistakes.values(), strict=True):
        assert is_one_line(process, pattern), describe(process)
    assert sorted(functions_of(prepared.containers)) == ["sample", "train", "train"]
    assert "Traceback" not in "".join(container.output for container in prepared.containers)
    assert stored_runs(prepared) == ["old"]
