"""The public import and export functions: folders, existing files, errors of the disk, the command line."""

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from nanogpt_files import SMALL, make_nanogpt_ckpt

import nanogpt_lite as ng
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.cli.commands import EXPORT_FORMATS
from nanogpt_lite.cli.main import main
from nanogpt_lite.interop import conversion
from nanogpt_lite.runs import run_files, run_folder

EXPORTS = {getattr(ng, name) for name in ng.__all__ if name.startswith("to_")}  # each is to_PROGRAM(run, folder, …)


@pytest.fixture
def nanogpt_ckpt(text_file):
    return make_nanogpt_ckpt(text_file)


@pytest.mark.parametrize("done", [True, False])
def test_two_imports_into_one_folder_do_not_mix(nanogpt_ckpt, monkeypatch, done):
    """The other one is done, or at work, between this one's look at the folder and its first file."""
    claim = run_files.create_run_dir

    def claimed(*arguments):
        monkeypatch.setattr(run_files, "create_run_dir", claim)
        if done:
            conversion.from_nanogpt("out/ckpt.pt", out_dir="runs/a")
        folder = claim(*arguments)
        if not done:
            other.enter_context(run_files.lock_run(folder))
        return folder

    monkeypatch.setattr(run_files, "create_run_dir", claimed)
    message = "holds a run" if done else "is in use by another training"
    with ExitStack() as other, pytest.raises(ng.UserError, match=message):
        conversion.from_nanogpt("out/ckpt.pt", out_dir="runs/a")
    assert len(list(Path("runs/a").iterdir())) == (2 if done else 0)


@pytest.mark.slow
@pytest.mark.posix("limits the size of a file with setrlimit")
def test_an_export_over_the_file_size_limit_leaves_existing_files_unchanged(text_file, case_counts):
    """In a process that may write 30 kB a file at most."""
    run = ng.train("bottles.txt", **SMALL)
    conversion.to_nanogpt(run, "there", dataset=True)
    conversion.to_huggingface(run, "there")
    before = {path: path.read_bytes() for path in Path("there").rglob("*") if path.is_file()}
    for export in (["--to", "hf"], ["--to", "nanogpt", "--dataset"], ["--weights"]):
        code = f"""if True:
            import resource, signal, sys
            from nanogpt_lite.cli.main import main
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
            sys.exit(main(["export", "--out_dir", {str(run.out_dir)!r}, "--overwrite", "--path", "there", *{export}]))
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        command = [sys.executable, "-c", code]  # without coverage, whose own file would be too large
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 1
        message = r"there/.*(safetensors|ckpt.pt): File too large; raise the limit on the size of a file\n$"
        assert re.search(message, done.stderr), done.stderr
        assert "Traceback" not in done.stderr
        assert {path: path.read_bytes() for path in Path("there").rglob("*") if path.is_file()} == before
        case_counts["refused by the system"] += 1


def test_an_export_does_not_count_as_a_run_and_replaces_none(nanogpt_ckpt):
    run = conversion.from_nanogpt("out/ckpt.pt", out_dir="runs/a")
    conversion.to_huggingface(run, "runs/hf")
    conversion.export_weights(run, "runs/alone/weights.safetensors")
    assert run_folder.newest_run().out_dir == Path("runs/a")
    assert {conversion.to_huggingface, conversion.to_nanogpt} <= EXPORTS
    for export in EXPORTS:
        with pytest.raises(ng.UserError, match="runs/a holds a run"):
            export(run, "runs/a", overwrite=True)
        with pytest.raises(ng.UserError, match="is a file, and the export is several files; give a folder"):
            export(run, "out/ckpt.pt", overwrite=True)
        folder = Path("twice") / export.__name__
        export(run, folder)
        written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for path in written:
            path.write_bytes(b"mine")
            with pytest.raises(ng.UserError, match="would be replaced; give another path"):
                export(run, folder)
            assert path.read_bytes() == b"mine"
            path.unlink()
            export(run, folder, overwrite=True)
        assert {path: path.read_bytes() for path in written} == written
    with pytest.raises(ng.UserError, match="is a checkpoint that is needed to resume its run"):
        conversion.export_weights(run, "runs/a/last.safetensors", overwrite=True)
    Path("elsewhere").mkdir()
    assert conversion.export_weights(run, "elsewhere") == Path("elsewhere/weights.safetensors")


def test_exported_weights_load_and_sample(text_file):
    run = ng.train("bottles.txt", **SMALL)
    path = conversion.export_weights(run)
    assert path == run.out_dir / "weights.safetensors"
    assert path.stat().st_size < 0.45 * (run.out_dir / "best.safetensors").stat().st_size
    options: dict[str, Any] = {"start": "7 green", "max_new_tokens": 20, "device": "cpu"}
    assert ng.sample(path, **options) == ng.sample(run, **options) == ng.sample(run, checkpoint="weights", **options)
    assert not [name for name in read_checkpoint(path).tensors if name.startswith("optimizer")]


@pytest.mark.parametrize("program", EXPORT_FORMATS)
def test_every_export_of_the_command_line_writes_what_it_names(nanogpt_ckpt, capsys, program):
    conversion.from_nanogpt("out/ckpt.pt", out_dir="runs/a")
    assert main(["export", "--out_dir", "runs/a", "--to", program, "--path", "there"]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written in (Path("there"), *Path("there").iterdir())
    assert any(path.is_file() for path in Path("there").iterdir())


def test_import_and_export_from_the_command_line(nanogpt_ckpt, capsys):
    assert main(["import", "--from", "out/ckpt.pt", "--out_dir", "runs/a"]) == 0
    assert main(["export", "--out_dir", "runs/a", "--to", "nanogpt"]) == 0
    assert main(["export", "--out_dir", "runs/a", "--to=hf", "--path", "there"]) == 0
    assert main(["export", "--out_dir", "runs/a", "--weights"]) == 0
    assert capsys.readouterr().out.split() == [
        "runs/a",
        "runs/a/nanogpt/ckpt.pt",
        "there",
        "runs/a/weights.safetensors",
    ]
    for line in ("--to nanogpt", "--to=hf --path there", "--weights"):
        assert main(["export", "--out_dir", "runs/a", *line.split()]) == 2
        assert "would be replaced; give another path" in capsys.readouterr().err
        assert main(["export", "--out_dir", "runs/a", "--overwrite", *line.split()]) == 0
    capsys.readouterr()
    for line, message in [
        ("import", "give a checkpoint of nanoGPT: --from"),
        ("import --from out/ckpt.pt --out_dir runs/a", "holds a run already; give another --out_dir"),
        ("export --out_dir runs/a", "what to export? give one of --to"),
        ("export --out_dir runs/a --to nanogtp", "did you mean nanogpt"),
        ("export --out_dir runs/a --to hf --weights", "what to export? give one of --to"),
        ("export --out_dir runs/a --to hf --dataset", "--dataset is for --to nanogpt"),
    ]:
        assert main(line.split()) == 2
        assert message in capsys.readouterr().err
