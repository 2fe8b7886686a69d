"""README, docs/, CONTRIBUTING and the like: every command runs or is checked, the Python runs, links and names exist.

tests/documentation.py reads the pages. The commands for Modal are checked by tests/cloud/test_modal_app.py.
"""

import ast
import inspect
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import requests
from documentation import (
    CHANGELOG,
    CONTRIBUTING,
    DOCS,
    PAGES,
    README,
    ROOT,
    anchors,
    code_blocks,
    inline_code,
    links,
    shell_commands,
    slug,
)
from served_app import server_process
from tiny import TINY, to_arguments

import nanogpt_lite as ng
from nanogpt_lite.cli import commands, main
from nanogpt_lite.config.options import InspectConfig, RunConfig, ServeConfig
from nanogpt_lite.data import download, sources
from nanogpt_lite.interop import conversion
from nanogpt_lite.tokenizers import hub

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SHORT_OPTIONS = {name: TINY[name] for name in ("block_size", "n_layer", "n_head", "n_embd", "device")}
ARGUMENTS = to_arguments({**SHORT_OPTIONS, "ngram": 1, "batch_size": 4, "max_iters": 4})
SHORT_RUN: dict[str, Any] = {**SHORT_OPTIONS, "max_iters": 2}
PUBLISHING = [  # tests/system/test_packaging.py builds, checks and runs the wheel
    "rm -rf dist",
    "python -m build",
    "twine check --strict dist/*",
    "rm -rf /tmp/empty",
    "python3 -m venv /tmp/empty",
    "/tmp/empty/bin/pip install dist/*.whl",
    "cd /tmp/empty",
    "bin/nanogpt-lite --version",
    "bin/nanogpt-lite run",
    'git tag -a v{version} -m "Version {version}"',
    "git push origin main v{version}",
    "twine upload --repository testpypi dist/*",
    "twine upload dist/*",
]
TORCHRUN = ["torchrun", "--nproc_per_node=2", "-m", "nanogpt_lite"]  # tests/device/test_distributed.py runs torchrun
PROGRAM = (".venv/bin/nanogpt-lite", "nanogpt-lite", TORCHRUN[-1])
GPT2 = {*hub.GPT2_REPOS}  # needs the Hugging Face hub: tests/interop/test_huggingface.py trains from it
MODAL_PAGE = ROOT / "docs/modal.md"
SERVE_PAGE, INSPECT_PAGE = ROOT / "docs/serve.md", ROOT / "docs/inspect.md"
# whose Python is run elsewhere: by tests/cloud/test_modal_app.py, tests/server/ and tests/api/test_inspection.py
OTHER_PYTHON = (MODAL_PAGE, SERVE_PAGE, INSPECT_PAGE)
LETTER = "Dear reader, all is well.\nTo be, or not to be?\n" * 60
TEXTS = ("my.txt", "notes/a.md", "letters.txt", "prompt.txt")  # that the pages name as the reader's own
EARLIER_RUNS = {  # runs that a page takes from another page, or from Modal
    "sampling.md": ["runs/notes"],
    "evaluation.md": ["runs/notes"],
    "is-my-loss-normal.md": ["runs/notes"],
    "serve.md": ["runs/notes"],
    "inspect.md": ["runs/notes"],
    "modal.md": ["runs/modal-my-1"],
}
CLI_ONLY = {
    *(
        "config",
        "open",
        "preset",
        "overwrite",
        "verify",
        "json",
        "copies",
        "from",
        "meta",
        "to",
        "path",
        "weights",
        "dataset",
        "text",
        "table",
        "help",
    )
}
MODAL_ONLY = {"gpu", "timeout", "max_dollars", "sweep_iters", "detach"}
OTHER_PROGRAMS = {"slow", "max_restarts", "parity"}  # of pytest, torchrun, benchmarks/vs_nanogpt.py
OTHER_PROGRAMS |= {"special", "split", "texts", "only"}  # of benchmarks/any_text.py
OTHER_PROGRAMS |= {"seconds", "short"}  # of benchmarks/on_gpu.py
OTHER_PROGRAMS |= {"timeout_graceful_shutdown"}  # of uvicorn


def program_commands(page: Path) -> list[list[str]]:
    """The calls of nanogpt-lite on a page, also those under torchrun, as argument lists."""
    all_words = [words[3:] if words[: len(TORCHRUN)] == TORCHRUN else words for words in shell_commands(page)]
    return [words[1:] for words in all_words if words[0] in PROGRAM]


def by_name(pages: list[Path]) -> list:
    return [pytest.param(page, id=page.name) for page in pages]


@pytest.fixture
def shakespeare(tmp_path, monkeypatch):
    """A small text in the cache in place of Shakespeare's; the current folder is an empty one."""
    text = b"ROMEO:\nWhat light?\n\nJULIET:\nAy me.\n\n" * 40
    resource = download.Resource("http://127.0.0.1:1/input.txt", "shakespeare_char/input.txt")
    monkeypatch.setitem(sources.RESOURCES, "shakespeare_char", resource)
    monkeypatch.setenv("NANOGPT_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "MAX_ATTEMPTS", 1)
    (tmp_path / "cache/shakespeare_char").mkdir(parents=True)
    (tmp_path / "cache/shakespeare_char/input.txt").write_bytes(text)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path / "cache/shakespeare_char/input.txt"


def make_named_files(page: Path) -> None:
    """Write the texts, runs and checkpoints that the commands of a page take for granted."""
    words = [word for command in shell_commands(page) for word in command]
    for name in TEXTS:
        if any(name in word or Path(word).match("notes/*.md") for word in words):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(LETTER, encoding="utf-8")
    for out_dir in EARLIER_RUNS.get(page.name, []):
        Path("earlier.txt").write_text(LETTER, encoding="utf-8")
        ng.train("earlier.txt", out_dir=out_dir, **SHORT_RUN)
    if any(word.startswith("nanoGPT/") for word in words):
        imported = ng.train("shakespeare_char", preset="cpu", out_dir="other", **SHORT_RUN)
        conversion.to_nanogpt(imported, "nanoGPT/out-shakespeare-char")
        Path("nanoGPT/out-shakespeare-char/data").rename("nanoGPT/data")


def test_the_first_two_commands_set_up_and_run():
    first, second = [block.strip() for block in code_blocks(README, "sh")[:2]]
    assert first.endswith("&& .venv/bin/nanogpt-lite run")
    assert second.endswith("&& .venv/bin/pytest -n auto")
    assert program_commands(README)[0] == ["run"]


def test_the_first_command_with_the_cache_filled_and_without(shakespeare, capsys):
    first = program_commands(README)[0]
    assert main.main([*first, *ARGUMENTS]) == 0
    captured = capsys.readouterr()
    assert len(captured.out) == 502
    assert "warning" not in captured.err
    listed = re.findall(r"^\| `((?:data|runs)/[^`]+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    written = {path.as_posix() for path in Path("runs").rglob("*") if path.is_file()}
    assert "runs/shakespeare_char-1/loss.png" in written
    assert set(listed) == {*written, "data/shakespeare_char/"}
    shakespeare.unlink()
    assert main.main([*first, *ARGUMENTS]) == 0
    captured = capsys.readouterr()
    assert len(captured.out) == 502
    assert captured.err.count("warning: cannot fetch http://127.0.0.1:1/input.txt") == 1
    assert Path("runs/python_docs-1/best.safetensors").is_file()
    assert main.main(["run", "--dataset", "shakespeare_char", *ARGUMENTS]) == 1


def test_every_command_of_the_program_is_understood():
    calls = [words for page in PAGES for words in program_commands(page)]
    assert len(calls) >= 40
    for words in calls:
        main.parse_command(words)
    inline = [shlex.split(code) for page in PAGES for code in inline_code(page) if code.startswith("nanogpt-lite ")]
    assert len(inline) >= 5
    for _, *words in inline:
        if "--help" in words:
            with pytest.raises(SystemExit, match="0|None"):
                main.parse_command(words)
        else:
            main.parse_command(words)


@pytest.mark.parametrize("page", by_name([page for page in PAGES if program_commands(page)]))
def test_the_commands_of_a_page_run_in_their_order(page, shakespeare, capsys, monkeypatch):
    """Each on small texts and for a few steps, with the options of the page's line."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    make_named_files(page)
    for words in program_commands(page):
        if GPT2 & {*words}:
            continue
        if words[0] == "serve":
            if words[1] == "--remote":  # test_modal_web.py runs it
                continue
            if words[1:] == ["--open"]:  # a test opens no browser
                run, more = None, []
            else:
                assert words[1] == "--out_dir"
                run, more = Path(words[2]), words[3:]
            with server_process(run, *more) as (address, _):
                assert requests.get(f"{address}/health", timeout=60).ok
            continue
        short = ARGUMENTS if words[0] in ("run", "train") and "--init_from" not in words else []
        if "--minutes" in words:
            short = [*to_arguments({**SHORT_OPTIONS, "ngram": 1, "batch_size": 4}), "--minutes", "0.001"]
        if "--init_from" in words:
            short = ["--max_iters", "6", "--device", "cpu"]
        if words[:3] == ["train", "--preset", "shakespeare_char"]:  # nanoGPT's command, of a small network
            short = ["--max_iters", "2"]
        assert main.main([*words, *short]) == 0, (words, capsys.readouterr().err)


def test_every_other_command_is_one_that_exists():
    """What sets up, tests, measures and serves is not run here; its files, extras and options exist."""
    extras = PROJECT["project"]["optional-dependencies"]
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    publishing = [shlex.split(line.format(version=ng.__version__)) for line in PUBLISHING]
    for page in PAGES:
        for words in shell_commands(page):
            if page == CONTRIBUTING and words in publishing:
                continue
            program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
            match program:
                case "python3":
                    assert arguments == ["-m", "venv", ".venv"]
                case "pip":
                    if arguments == ["install", "modal"]:  # tests/cloud/test_modal_app.py: it needs nothing else
                        assert page in (README, MODAL_PAGE)
                        continue
                    assert arguments[:2] == ["install", "-e"]
                    (names,) = re.findall(r"^\.\[(.*)\]$", arguments[2])
                    assert set(names.split(",")) <= extras.keys()
                case "python":
                    source = (ROOT / arguments[0]).read_text(encoding="utf-8")
                    options = [word for word in arguments[1:] if word.startswith("--")]
                    assert all(f'add_argument("{option}"' in source for option in options), words
                case "benchmarks/gpu.sh":
                    assert (ROOT / program).is_file()
                case "git":
                    assert words == ["git", "clone", "https://github.com/karpathy/nanoGPT"]
                case "source":
                    assert words == ["source", ".venv/bin/activate"]
                case "tensorboard":
                    assert words == ["tensorboard", "--logdir", "runs"]
                case "ruff" | "mypy" | "lint-imports":
                    assert program in ci
                case "pytest":
                    assert arguments in ([], ["-n", "auto"], ["--cov"])
                case "curl":
                    assert page in (SERVE_PAGE, MODAL_PAGE), "test_serving.py and test_modal_web.py run it"
                case "pre-commit":
                    assert arguments == ["install"]
                case "modal":
                    assert page in (README, MODAL_PAGE), "tests/cloud/test_modal_app.py reads these two"
                case _:
                    is_setting = (
                        program.startswith(("NANOGPT_GPU=", "NANOGPT_SECRET=", "NANOGPT_WEB_RUN="))
                        and "modal" in words[1:3]
                        and page == MODAL_PAGE
                    )
                    assert program in ("nanogpt-lite", "torchrun") or is_setting, words


def test_the_steps_to_publish_are_complete_and_name_the_version():
    _, section = CONTRIBUTING.read_text(encoding="utf-8").split("## How to publish\n")
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S) for line in block.splitlines()]
    assert lines == [line.format(version=ng.__version__) for line in PUBLISHING]


def test_every_option_that_the_text_names_exists():
    known = {*RunConfig.names(), *InspectConfig.names(), *ServeConfig.names(), *CLI_ONLY, *MODAL_ONLY, *OTHER_PROGRAMS}
    for page in set(PAGES) - {CHANGELOG}:  # which also names options of earlier versions
        for code in inline_code(page):
            for name in re.findall(r"(?<!\S)--([a-z0-9][a-z0-9_-]*)", code):
                assert name.replace("-", "_") in known, (page.name, code)


@pytest.mark.parametrize(
    "page", by_name([page for page in PAGES if code_blocks(page, "python") and page not in OTHER_PYTHON])
)
def test_the_python_of_a_page_runs(page, shakespeare, capsys):
    names: dict[str, object] = {}
    code = "\n".join(code_blocks(page, "python"))
    assert "max_iters=500" in code
    exec(code.replace("max_iters=500", "max_iters=4, n_embd=16, n_head=2"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("ROMEO:")
    if "JULIET:" in code:
        assert "JULIET:" in printed
    if "record.val_loss" in code:
        assert re.search(r"4 \d\.\d+\n$", printed)


def test_blocks_are_of_a_language_that_is_tested():
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(fences[::2]) <= {"sh", "python", "text"} | ({"yaml"} if page == MODAL_PAGE else set()), page.name
        assert set(fences[1::2]) <= {""}, page.name
    assert not [page.name for page in [*DOCS, CONTRIBUTING] if code_blocks(page, "text")]  # README: a sample
    assert len(code_blocks(README, "text")) == 1


def test_readme_is_short_and_lines_fit():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
    for page in PAGES:
        assert not [line for line in page.read_text(encoding="utf-8").splitlines() if len(line) > 120], page.name


def test_every_relative_link_leads_to_a_file_and_a_heading():
    for page in PAGES:
        for link in links(page):
            if link.startswith("https://"):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), (page.name, link)
            assert not anchor or anchor in anchors(target), (page.name, link)


def test_readme_leads_to_every_page():
    assert set(PAGES) - {README} <= {(ROOT / link).resolve() for link in links(README)}


def test_anchors_are_spelled_as_github_spells_them():
    assert slug("What is exported, and where to") == "what-is-exported-and-where-to"
    assert slug("GPT-2") == "gpt-2"


def test_figures_against_nanogpt_are_those_that_were_measured():
    def rows(page):
        lines = re.findall(r"^\| (.*) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
        return [line for line in lines if re.search(r"\| (MB/s|tokens/s|MB|s|ms|nats) \|", line)]

    measured = rows(ROOT / "benchmarks/results/vs_nanogpt.md")
    assert rows(ROOT / "docs/benchmarks.md") == measured
    in_readme = rows(README)
    assert len(in_readme) >= 5
    assert all(any(line.startswith(f"{row} | ") for line in measured) for row in in_readme)


def test_the_result_of_a_training_that_is_explained_was_measured():
    page = (ROOT / "docs/is-my-loss-normal.md").read_text(encoding="utf-8")
    explained = re.findall("^    .*$", page, re.MULTILINE)
    assert len(explained) == 3
    assert "\n".join(explained) in (ROOT / "benchmarks/results/loss_curves.md").read_text(encoding="utf-8")


def test_contributing_lists_every_package():
    listed = re.findall(r"^\| `(\w+)` \| ", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE)
    (contract,) = PROJECT["tool"]["importlinter"]["contracts"]
    assert sorted(listed) == sorted(set(contract["layers"]) - {"__main__"})


def test_every_public_function_and_export_is_documented():
    functions = {name for name in ng.__all__ if inspect.isfunction(getattr(ng, name))} - {"pieces"}  # an old name
    described = re.findall(r"`(\w+)(?:\(.*?\))?`", (ROOT / "docs/python.md").read_text(encoding="utf-8"))
    assert functions <= set(described)
    page = ROOT / "docs/import-export.md"
    exported = {words[words.index("--to") + 1] for words in program_commands(page) if "--to" in words}
    assert exported == set(commands.EXPORT_FORMATS)
    assert all(name in commands.COMMANDS["export"].texts["to"] for name in exported)


def test_where_is_what_names_files_and_functions_that_exist():
    _, section = CONTRIBUTING.read_text(encoding="utf-8").split("## Where is what\n")
    assert section.count("**Where ") >= 10
    named = re.findall(r"`([\w/]+\.py)(?::([\w.]+))?`", section)
    assert len(named) >= 20
    for path, name in named:
        file = (
            ROOT / path if path.startswith(("tests/", "benchmarks/", "modal_app.py")) else ROOT / "nanogpt_lite" / path
        )
        assert file.is_file(), path
        assert not name or name in definitions(file), f"{path}:{name}"


def definitions(file: Path) -> set[str]:
    """The functions, classes, methods and constants that a module defines."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name, body=body):
                names |= {name, *(f"{name}.{method.name}" for method in body if isinstance(method, ast.FunctionDef))}
            case ast.Assign(targets=targets):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


def test_the_data_is_the_one_that_everybody_uses():
    resource = sources.RESOURCES["shakespeare_char"]
    assert resource.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert resource.url.endswith("karpathy/char-rnn/master/data/tinyshakespeare/input.txt")
