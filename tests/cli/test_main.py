"""The commands: their output, messages, exit statuses, and what a killed process leaves."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from command_line import SHORT, TRAIN, main

import nanogpt_lite as ng
from nanogpt_lite.api import inference
from nanogpt_lite.cli import main as command_line
from nanogpt_lite.device import devices


def test_command_line_of_nanogpts_readme_runs(text_file, capsys):
    """As published, the program's name and config file replaced, and a shorter run."""
    line = (
        "train --preset shakespeare_char --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
        "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 "
        "--lr_decay_iters=2000 --dropout=0.0"
    )
    assert command_line.parse_command(line.split())[1]["max_iters"] == 2000
    assert main(f"{line} --dataset bottles.txt --max_iters=3") == 0
    written = json.loads(Path("runs/bottles-1/config.json").read_text(encoding="utf-8"))["config"]
    assert {k: written[k] for k in ("n_embd", "eval_iters", "lr_decay_iters", "dropout", "compile", "beta2")} == {
        "n_embd": 128,
        "eval_iters": 20,
        "lr_decay_iters": 2000,
        "dropout": 0.0,
        "compile": False,
        "beta2": 0.99,
    }
    captured = capsys.readouterr()
    assert captured.out == "runs/bottles-1\n"
    assert "step 3: train loss" in captured.err


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("trian", r"unknown command 'trian'; did you mean train\?"),
        ("train --nlayer 4", r"unknown argument '--nlayer'; did you mean --n_layer\?"),
        ("train my.txt", r"unknown argument 'my.txt'; did you mean --dataset my.txt\?"),
        ("sample runs/a", r"unknown argument 'runs/a'; did you mean --out_dir runs/a\?"),
        ("train --compile", "--compile needs a value: give --compile True or --compile False; see"),
        ("train --n_layer", "--n_layer needs a value: give --n_layer VALUE.*; see nanogpt-lite train --help"),
        ("train --n_layer x", "--n_layer x is an invalid value: must be a whole number, from 1 to 1000"),
        ("train --bias 2", "--bias 2 is an invalid value: must be True or False"),
        ("train --n_embd 11", "--n_embd 11 is not a multiple of --n_head 2.*try --n_embd 12"),
        ("train --dropout 1", "--dropout 1.0 is an invalid value: .*below 1"),
        ("train --learning_rate nan", "--learning_rate nan is an invalid value"),
        ("train --preset big", "unknown preset 'big'"),
        ("train --dataset nix", "no dataset, file or folder 'nix'"),
        ("prepare --dataset http://[x", r"'http://\[x' is not a valid URL"),
        ("train --dataset empty.txt", "empty.txt has 0 characters"),
        ("train --dataset latin1.txt", "latin1.txt is not UTF-8: byte 0xe9 at offset 3"),
        ("train --dataset bottles.txt --block_size 90000 --device cpu", "too short for block_size=90000.*100"),
        ("train --dataset nothing", r"no files to read in 'nothing'"),
        ("train --out_dir bottles.txt --dataset bottles.txt --device cpu", "bottles.txt is a file, and a run needs a"),
        (
            ["train", "--dataset", "To be\nor not to be"],
            r"'To be\\nor not to be'… of 18 characters is not a name or path",
        ),
        (["train", "--dataset", "a" * 5000], r"of 5000 characters is not a name or path.*write it to a file"),
        ("train --device gpu", "device='gpu' is not supported; give .*cpu.*, or cuda"),
        ("train --config nix.json", "config file nix.json cannot be read"),
        ("train --device cuda:77", "device='cuda:77' cannot be used on this machine"),
        ("train --init_from resume", "no run with a checkpoint under runs/"),
        ("train --init_from resume --out_dir nowhere", "there is no run nowhere; train a run first"),
        ("sample", "no run with a checkpoint under runs/; train one, or give"),
        ("sample --top_p 1.5", "--top_p 1.5 is an invalid value: .*from 0 to 1"),
        ("sample --out_dir nowhere", "no run nowhere"),
        ("eval --out_dir nowhere --json", "no run nowhere"),
        ("plot --out_dir nowhere", "no run nowhere"),
        ("prepare --dataset bottles.txt --tokenizer word", "--tokenizer word is an invalid value: .*auto, char, byte"),
    ],
)
def test_user_error_is_one_or_two_lines_with_status_2(text_file, capsys, line, pattern):
    Path("empty.txt").write_text("", encoding="utf-8")
    Path("latin1.txt").write_bytes(b"caf\xe9 au lait " * 10)
    Path("nothing").mkdir()
    assert (main(line) if isinstance(line, str) else main(*line)) == 2
    captured = capsys.readouterr()
    assert re.search(pattern, captured.err)
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") <= 2
    assert captured.out == ""
    assert not Path("runs").exists()


def test_external_failures_have_a_message_and_status_1(text_file, capsys, monkeypatch):
    monkeypatch.setenv("NANOGPT_LITE_CACHE", str(text_file.parent / "cache"))
    monkeypatch.setattr("nanogpt_lite.data.download.MAX_ATTEMPTS", 1)
    url = "http://127.0.0.1:1/a.txt"  # no server listens on port 1
    assert main(f"prepare --dataset {url}") == 1
    assert re.search(r"^error: cannot fetch http://127.0.0.1:1/a.txt \(.*refused.*python_docs", capsys.readouterr().err)

    def full(*_args, **_options):
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr("nanogpt_lite.checkpoint.checkpoint_file.write_checkpoint", full)
    assert main(f"{TRAIN} --max_iters 2") == 1
    assert "error: runs/x: No space left on device; free some space" in capsys.readouterr().err
    monkeypatch.setattr("nanogpt_lite.trainer.loop.train_step", lambda *_: (_ for _ in ()).throw(MemoryError))
    assert main(f"{TRAIN} --max_iters 2") == 1
    assert "out of memory; give a smaller --block_size" in capsys.readouterr().err


def test_bug_keeps_its_traceback(text_file, monkeypatch):
    monkeypatch.setattr("nanogpt_lite.trainer.loop.train_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(f"{TRAIN} --max_iters 2")


def test_results_go_to_standard_output_and_the_rest_to_standard_error(text_file, capsys):
    assert main("prepare --dataset bottles.txt") == 0
    assert re.fullmatch(
        r"Dataset\('data/bottles': 21,\d+ train and 2,\d+ val tokens, vocab_size=30\)\n", capsys.readouterr().out
    )
    assert main(f"{TRAIN} --max_iters 4 --eval_interval 2") == 0
    assert capsys.readouterr().out == "runs/bottles-1\n"
    assert main("eval --json --threads 1") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["step"] == 4
    assert captured.err == "using the newest run: runs/bottles-1\n"
    assert main("eval --out_dir runs/bottles-1") == 0
    assert re.search(r"^val_loss: 3\.\d{4}$", capsys.readouterr().out, re.M)
    assert main("plot") == 0
    assert capsys.readouterr().out == "runs/bottles-1/loss.png\n"
    assert Path("runs/bottles-1/loss.png").read_bytes().startswith(b"\x89PNG")


def test_samples_are_printed_completely_and_in_order(text_file, capsys):
    main(f"{TRAIN} --max_iters 4")
    capsys.readouterr()
    assert main("sample --num_samples 3 --max_new_tokens 20 --start", "9 green") == 0
    printed = capsys.readouterr().out
    texts = ng.sample(num_samples=3, max_new_tokens=20, start="9 green")
    assert printed == "\n---------------\n".join(texts) + "\n"
    assert len(set(texts)) == 3


def test_run_prepares_trains_and_samples(text_file, capsys):
    assert main(f"run --dataset bottles.txt {SHORT} --max_iters 4 --max_new_tokens 30 --temperature 0.5") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("\n")
    assert len(captured.out) == 1 + 30 + 1
    assert "loss curves: runs/bottles-1/loss.png" in captured.err
    assert Path("runs/bottles-1/loss.png").is_file()


@pytest.mark.parametrize(("error", "status"), [(ng.UserError, 2), (ng.ExternalError, 1)])
def test_library_messages_name_options_as_on_the_command_line(capsys, monkeypatch, error, status):
    def fail(**options):
        raise error("no room; give another `out_dir` or `overwrite=True`")

    monkeypatch.setattr("nanogpt_lite.api.pipeline.train", fail)
    assert main("train") == status
    assert capsys.readouterr().err == "error: no room; give another --out_dir or --overwrite\n"


def test_an_error_that_is_no_users_mistake_keeps_its_traceback(monkeypatch):
    def fail(**options):
        raise RuntimeError("a bug")

    monkeypatch.setattr("nanogpt_lite.api.pipeline.train", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main("train")


@pytest.mark.filterwarnings("default")
def test_warnings_of_the_program_are_a_line_and_others_have_their_place(text_file, capsys, monkeypatch):
    assert main(TRAIN, "--max_iters", "1", "--out_dir", "run") == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "find_problem", lambda device: "no kernels" if device.type == "cuda" else "")
    sample = inference.stream_batch

    def warn_and_sample(*arguments, **options):
        warnings.warn_explicit("slow", UserWarning, "other.py", 7)
        return sample(*arguments, **options)

    monkeypatch.setattr(inference, "stream_batch", warn_and_sample)
    capsys.readouterr()
    assert main("sample --max_new_tokens 1 --out_dir run") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("warning: the GPU cannot be used (no kernels); using the CPU") == 1
    assert "other.py:7: UserWarning: slow" in lines


def test_version_is_that_of_the_package(capsys):
    assert main("--version") == 0
    assert capsys.readouterr().out == f"{ng.__version__}\n"


def test_last_garbage_collection_leaves_out_what_is_there():
    script = """
import atexit, gc, nanogpt_lite.cli.main as command_line
atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # called after what `main` registers
try:
    command_line.main(["--version"])
except SystemExit:
    print(gc.get_freeze_count())
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout.split()[-2:] == ["0", "True"]


def test_a_folder_in_place_of_the_metrics_is_not_replaced(text_file, capsys):
    Path("mine/metrics.jsonl").mkdir(parents=True)
    assert main(f"{TRAIN} --max_iters 2 --out_dir mine --overwrite") == 2
    assert "mine/metrics.jsonl exists already, and no run wrote it" in capsys.readouterr().err
    assert Path("mine/metrics.jsonl").is_dir()


def test_read_only_folder_is_reported(text_file, capsys):
    if os.geteuid() == 0:  # root can write to any folder: put a file where the folder would be
        Path("runs").write_text("", encoding="utf-8")
    else:
        Path("runs").mkdir(mode=0o500)
    assert main(f"{TRAIN} --max_iters 2") == 1
    assert re.search("error: runs.*(exists|denied|Not a directory).*check the path", capsys.readouterr().err)


@pytest.mark.parametrize(("option", "folder"), [("", "data/bottles"), (" --tokenizer byte", "data/bottles-byte")])
def test_prepare_finds_a_damaged_dataset_and_its_remedy_works(text_file, capsys, option, folder):
    assert main(f"prepare --dataset bottles.txt{option}") == 0
    path = Path(folder, "train.bin")
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\1" + content[101:])
    assert main(f"prepare --dataset bottles.txt{option}") == 2
    stderr = capsys.readouterr().err
    remedy = re.search(r"prepare it again with (--dataset bottles.txt .*--overwrite)", stderr)
    assert remedy
    assert main(f"prepare {remedy[1]}") == 0
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", '{"mine": 1}'), ("config.json", '{"versions": {}}'), ("metrics.jsonl", "mine")],
)
@pytest.mark.parametrize("overwrite", ["", " --overwrite"])
def test_files_that_belong_to_no_run_are_not_replaced(text_file, capsys, name, content, overwrite):
    Path("mine").mkdir()
    (Path("mine") / name).write_text(content)
    assert main(f"{TRAIN} --max_iters 2 --out_dir mine{overwrite}") == 2
    assert f"mine/{name} exists already, and no run wrote it" in capsys.readouterr().err
    assert (Path("mine") / name).read_text() == content
    assert len(list(Path("mine").iterdir())) == 1


def test_overwrite_accepts_the_files_of_a_failed_run(text_file):
    assert main(f"{TRAIN} --max_iters 2 --out_dir again") == 0
    for path in Path("again").glob("*.safetensors"):
        path.unlink()
    for content in (None, "{", ""):
        if content is not None:
            Path("again/config.json").write_text(content, encoding="utf-8")
        assert main(f"{TRAIN} --max_iters 2 --out_dir again --overwrite") == 0


def test_remedy_for_a_damaged_checkpoint_works(text_file, capsys):
    assert main(f"{TRAIN} --max_iters 4 --eval_interval 2 --out_dir r") == 0
    whole = Path("r/best.safetensors").read_bytes()
    Path("r/last.safetensors").write_bytes(whole[:-9])
    assert main("train --out_dir r --init_from resume --max_iters 6") == 2
    stderr = capsys.readouterr().err
    match = re.search(r"its folder also has (\w+): .* copy (\S+) over (\S+)\n", stderr)
    assert match
    there, copied, over = match.groups()
    assert there == "best"
    assert main(f"sample --out_dir r --checkpoint {there} --max_new_tokens 3") == 0
    Path(over).write_bytes(Path(copied).read_bytes())
    assert main("train --out_dir r --init_from resume --max_iters 6") == 0
    for path in Path("r").glob("*.safetensors"):
        path.write_bytes(b"")
    Path("r/last.safetensors").unlink()
    assert main("sample --out_dir r") == 2
    assert "its folder has no other checkpoint: train again (--overwrite" in capsys.readouterr().err
    assert main(f"{TRAIN} --max_iters 2 --out_dir r --overwrite") == 0
    assert main("sample --out_dir bottles.txt") == 2
    assert "give the folder of a run, or one of its checkpoints" in capsys.readouterr().err


def test_resume_reports_its_checkpoint_and_ignored_options(text_file, capsys):
    assert main(f"{TRAIN} --max_iters 2") == 0
    Path("runs/bottles-1/last.safetensors").unlink()
    capsys.readouterr()
    assert main("train --init_from resume --max_iters 4 --preset modern") == 0
    stderr = capsys.readouterr().err
    assert "resuming the newest run: runs/bottles-1\n" in stderr
    assert "has no last checkpoint; resuming from best\n" in stderr
    assert "--preset has no effect" in stderr
    for preset, is_reported in (("modern-cpu", True), ("finetune", False)):
        line = f"train --preset {preset} --init_from runs/bottles-1 --dataset bottles.txt --max_iters 2 --device cpu"
        assert main(f"{line} --gradient_accumulation_steps 1") == 0
        stderr = capsys.readouterr().err
        assert ("the network has the shape of runs/bottles-1, and not that of --preset" in stderr) == is_reported


def test_os_error_names_the_final_file(text_file, capsys):
    assert main(f"{TRAIN} --max_iters 2 --out_dir r") == 0
    Path("r/last.safetensors").unlink()
    Path("r/last.safetensors").mkdir()
    assert main(f"{TRAIN} --max_iters 4 --out_dir r --init_from resume") == 1
    assert "error: r/last.safetensors: Is a directory; check the path and its permissions" in capsys.readouterr().err
