"""Windows and macOS, as far as Linux can show: absent modules, other errors, and the markers of tests."""

import ast
import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import conftest
import error_recorder
import pytest
from conftest import TEXT

import nanogpt_lite as ng
from nanogpt_lite import files
from nanogpt_lite.cli import main as cli
from nanogpt_lite.cli.arguments import Command
from nanogpt_lite.config.spelling import for_command_line, quote
from nanogpt_lite.data import sources

ROOT = Path(__file__).parents[2]
POSIX_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios")  # standard modules that Windows lacks

WITHOUT_POSIX = f"""
import importlib, os, pkgutil, signal, sys, warnings
import requests, torch.distributed.launcher.api, torch.utils.data  # they have their own code for Windows
for name in {POSIX_MODULES}:
    sys.modules[name] = None  # importing it raises ImportError
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM"):
    delattr(signal, name)
for name in ("fork", "getuid", "geteuid", "mkfifo", "wait4", "posix_spawn"):
    delattr(os, name)
import nanogpt_lite as ng
from tiny import TINY
for module in pkgutil.walk_packages(ng.__path__, "nanogpt_lite."):
    importlib.import_module(module.name)
from nanogpt_lite.cli.main import main
warnings.simplefilter("ignore")  # filelock: without fcntl it has no lock of the operating system
options = [word for name, value in TINY.items() for word in ("--" + name, str(value))]
assert main(["run", "--dataset", "bottles.txt", "--max_new_tokens", "40", "--preset", "cpu", *options]) == 0
assert main(["train", "--out_dir", "runs/bottles-1", "--init_from", "resume", "--max_iters", "25"]) == 0
assert main(["eval", "--json", "--dataset", "bottles.txt"]) == 0
assert main(["info"]) == 0
ng.to_nanogpt("runs/bottles-1", "exported")
ng.from_nanogpt("exported", meta="exported/data/bottles/meta.pkl", out_dir="runs/imported")
"""


def test_pipeline_works_without_the_modules_and_functions_that_windows_lacks(text_file):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path("runs/imported/last.safetensors").is_file()


def test_no_module_needs_a_posix_module_to_be_imported():
    """A module on Windows, also a test module whose tests are skipped there, has to be importable."""
    for path in [*ROOT.glob("nanogpt_lite/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py")]:
        if "local_modal" in path.parts:  # imported after a check for Linux
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not set(names) & set(POSIX_MODULES), path


@pytest.mark.parametrize(
    ("marker", "runs_on"), [("linux", ["linux"]), ("posix", ["linux", "darwin"]), ("", ["linux", "darwin", "win32"])]
)
def test_marked_test_is_skipped_with_its_reason_on_other_platforms(marker, runs_on):
    class Item:
        def get_closest_marker(self, name):
            return SimpleNamespace(args=("reads /proc",)) if name == marker else None

    for platform in ("linux", "darwin", "win32"):
        reason = "" if platform in runs_on else f"reads /proc; this is {platform}"
        assert conftest.reason_to_skip(Item(), platform) == reason


@pytest.mark.parametrize(
    ("name", "safe"),
    [("aux", "aux_"), ("CON.txt", "CON.txt_"), ("com1", "com1_"), ("com10", "com10"), ("notes.", "notes"),
     ("my text: part 1?", "my_text_part_1"), ("...", "text"), ("console", "console")],
)  # fmt: skip
def test_names_of_files_are_valid_on_windows(name, safe):
    assert files.safe_name(name, "text") == safe


def test_dataset_named_like_a_device_of_windows_gets_another_folder(text_file):
    text_file.rename("nul.txt")
    assert sources.dataset_name("nul.txt") == "nul_"
    assert ng.prepare("nul.txt").path == Path("data/nul_")


def test_glob_is_found_although_windows_refuses_it_as_a_path(text_file, monkeypatch):
    class InvalidNameError(OSError):
        winerror = 123

    stat = Path.stat

    def refuse(self, **options):
        if "*" in str(self):
            raise InvalidNameError(errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect")
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "is_dir", lambda self: os.path.isdir(self))  # noqa: PTH112 (as Windows: False for it)
    monkeypatch.setattr(Path, "is_file", lambda self: os.path.isfile(self))  # noqa: PTH113
    assert "".join(sources.find_source("*.txt").read_chunks()) == TEXT


def test_commands_in_messages_are_quoted_for_the_shell_of_windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert quote(r"my runs\a") == r'"my runs\a"'
    assert quote(r"runs\a") == r"runs\a"
    assert for_command_line("give `out_dir='my runs'`") == 'give --out_dir "my runs"'


@pytest.mark.parametrize(
    ("platform", "is_closed", "status"), [("win32", True, 141), ("win32", False, 1), ("linux", True, 1)]
)
def test_closed_pipe_of_windows_ends_the_command_quietly(monkeypatch, capsys, platform, is_closed, status):
    class ClosedPipe(io.StringIO):
        def flush(self):  # what could not be written stays in the buffer
            raise OSError(errno.EINVAL, "Invalid argument")

        def fileno(self):
            return 1

    def write(given):
        raise OSError(errno.EINVAL, "Invalid argument")

    copies = []
    monkeypatch.setattr(os, "dup2", lambda *handles: copies.append(handles))
    monkeypatch.setattr(cli, "parse_command", lambda argv: (Command("", write, "json"), {}))
    monkeypatch.setattr(sys, "platform", platform)
    if is_closed:
        monkeypatch.setattr(sys, "stdout", ClosedPipe())
    assert cli.main(["info"]) == status
    assert bool(copies) == (status == 141)
    assert ("Invalid argument" in capsys.readouterr().err) == (status == 1)


@pytest.mark.parametrize(("platform", "is_replaced"), [("win32", True), ("linux", False)])
def test_replacing_a_file_waits_on_windows_until_its_readers_have_closed_it(
    tmp_path, monkeypatch, platform, is_replaced
):
    path, refusals = tmp_path / "last.safetensors", [PermissionError(13, "Access is denied")] * 2
    replace = Path.replace

    def refuse(self, target):
        if refusals:
            raise refusals.pop()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(sys, "platform", platform)
    with contextlib.nullcontext() if is_replaced else pytest.raises(PermissionError):
        with files.atomic_write(path) as temporary:
            temporary.touch()
    assert path.exists() == is_replaced


def test_file_that_stays_open_on_windows_is_an_error_with_the_remedy(tmp_path, monkeypatch, capsys):
    def write(given):
        raise PermissionError(13, "Access is denied", "data/a/train.bin")

    monkeypatch.setattr(cli, "parse_command", lambda argv: (Command("", write, "json"), {}))
    monkeypatch.setattr(sys, "platform", "win32")
    assert cli.main(["info"]) == 1
    assert "close other programs that have the file open" in capsys.readouterr().err


def test_paths_in_config_json_have_forward_slashes(trained):
    assert '"path": "data/bottles"' in (trained.out_dir / "config.json").read_text(encoding="utf-8")


def test_written_json_has_the_same_newlines_on_every_system(tmp_path, monkeypatch):
    newlines = []
    write_text = Path.write_text

    def spy(self, text, encoding=None, errors=None, newline=None):
        newlines.append(newline)
        return write_text(self, text, encoding, errors, newline)

    monkeypatch.setattr(Path, "write_text", spy)
    files.write_json(tmp_path / "a.json", {"a": 1})
    assert newlines == ["\n"]


def test_macos_flushes_the_cache_of_the_drive(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    calls = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda handle, command: calls.append(command))
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync"))
    monkeypatch.setattr(sys, "platform", "darwin")
    files.sync_to_disk(tmp_path)
    assert calls == [51]

    def refuse(handle, command):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    files.sync_to_disk(tmp_path)
    assert calls == [51, "fsync"]


def test_ctrl_break_of_windows_requests_a_stop(monkeypatch):
    from nanogpt_lite.device import signals

    installed = {}
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(signal, "signal", lambda signum, handler: installed.setdefault(signum, handler))
    with signals.stop_on_signals() as stop:
        assert set(installed) == {signal.SIGINT, signal.SIGTERM, 21}
        installed[21](21, None)
    assert stop.signum == 21


def test_only_marked_tests_are_skipped_also_in_a_folder_with_the_name_of_a_marker(tmp_path):
    folder = tmp_path / "slow" / "gpu"
    folder.mkdir(parents=True)
    code = "import pytest\n\ndef test_a():\n    pass\n\n@pytest.mark.slow\ndef test_b():\n    pass\n"
    (folder / "test_ab.py").write_text(code, encoding="utf-8")
    (tmp_path / "slow/pytest.ini").write_text("[pytest]\nmarkers =\n    slow: as here\n", encoding="utf-8")
    tests = Path(__file__).parents[1]
    # without this run's file of recorded errors, which the other run would delete at its end
    inherited = {name: value for name, value in os.environ.items() if name != error_recorder.VARIABLE}
    printed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", folder],
        cwd=tmp_path / "slow",
        env={**inherited, "PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert "1 passed, 1 skipped" in printed, printed
