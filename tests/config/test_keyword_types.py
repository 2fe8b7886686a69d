"""The generated types of the keyword arguments: as the options are, and as mypy and pyright use them."""

import dataclasses
import inspect
import re
import subprocess
import sys
import sysconfig
import typing
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
from documentation import PAGES, ROOT, code_blocks

import nanogpt_lite as ng
from nanogpt_lite.api import main_job
from nanogpt_lite.cloud import launcher
from nanogpt_lite.config import keyword_generator, keyword_types
from nanogpt_lite.config.options import LoadConfig, RunConfig, SampleConfig, TrainConfig
from nanogpt_lite.config.schema import Options, one_of, training_option

PACKAGE = ROOT / "nanogpt_lite"
MODAL_PAGE = "modal.md"  # its Python calls a deployed app
# What follows "# error" is the code that mypy reports for the line, then the rule of pyright.
CALLS = """\
from pathlib import Path

import nanogpt_lite as ng

run = ng.train("my.txt", preset="cpu", out_dir=Path("runs/a"), max_iters=10, dropout=0, optimizer="muon", bias=True)
ng.train(Path("my.txt"), init_from=Path("runs/a"), config="config.json", overwrite=True, trace="traces")
ng.train(ng.prepare("my.txt", tokenizer="bpe-512"), tokenizer="bpe-512", learning_rate=1e-3)
ng.sample(run, start="ROMEO:", num_samples=2, temperature=1, top_k=0, dtype="bfloat16", int8=True)
ng.sample(ng.load("runs/a", checkpoint="last", device="cpu"), max_new_tokens=3)
options: ng.TrainOptions = {"n_layer": 2, "norm": "rms"}
ng.train("my.txt", **options)
ng.train("my.txt", n_layers=2)  # error call-arg reportCallIssue
ng.train("my.txt", n_layer="2")  # error arg-type reportArgumentType
ng.train("my.txt", n_layer=2.5)  # error arg-type reportArgumentType
ng.train("my.txt", dropout="no")  # error arg-type reportArgumentType
ng.train("my.txt", bias=1)  # error arg-type reportArgumentType
ng.train("my.txt", max_iters=None)  # error arg-type reportArgumentType
ng.train("my.txt", dtype="float64")  # error arg-type reportArgumentType
ng.train("my.txt", optimizer="adam")  # error arg-type reportArgumentType
ng.train("my.txt", norm="rmsnorm")  # error arg-type reportArgumentType
ng.train("my.txt", position="rope")  # error arg-type reportArgumentType
ng.train("my.txt", activation="silu")  # error arg-type reportArgumentType
ng.train("my.txt", preset="modern_cpu")  # error arg-type reportArgumentType
ng.train("my.txt", wandb_project=Path("a"))  # error arg-type reportArgumentType
ng.training("my.txt", max_iter=1)  # error call-arg reportCallIssue
ng.sample(run, max_iters=1)  # error call-arg reportCallIssue
ng.stream(run, num_samples=2)  # error call-arg reportCallIssue
ng.stream_batch(run, top_k=0.5)  # error arg-type reportArgumentType
ng.load(run, int8="yes")  # error arg-type reportArgumentType
ng.load(run, temperature=1)  # error call-arg reportCallIssue
ng.evaluate(run, checkpoint=3)  # error arg-type reportArgumentType
ng.evaluate(run)["validation_loss"]  # error typeddict-item reportGeneralTypeIssues
wrong: ng.SampleOptions = {"topk": 3}  # error typeddict-unknown-key reportAssignmentType
ng.smaple(run)  # error attr-defined reportAttributeAccessIssue
"""


def test_committed_types_are_those_of_the_options():
    remedy = "run: python -m nanogpt_lite.config.keyword_generator"
    assert keyword_generator.OUTPUT.read_text(encoding="utf-8") == keyword_generator.keyword_types(), remedy


def test_generated_source_follows_every_change_of_an_option(monkeypatch):
    def source_with(name, field):
        kind = dataclasses.make_dataclass(
            "Changed", [(name, type(field.default), field)], bases=(Options,), frozen=True
        )
        classes = [keyword_generator.TypedDictSource("ChangedOptions", (), kind, "Options.")]
        monkeypatch.setattr(keyword_generator, "CLASSES", classes)
        return keyword_generator.keyword_types()

    sources = [
        source_with("norm", training_option("layer", "normalisation")),
        source_with("normalise", training_option("layer", "normalisation")),
        source_with("norm", training_option(True, "normalisation")),
        source_with("norm", training_option("rms", "normalisation")),
        source_with("norm", training_option("layer", "normalisation of activations")),
        source_with("norm", training_option("layer", "normalisation", one_of("layer", "rms"))),
        source_with("norm", training_option("layer", "normalisation", one_of("layer", "rms", "batch"))),
        source_with("out_dir", training_option("layer", "normalisation")),
    ]
    assert len(set(sources)) == len(sources)
    assert '    norm: Literal["layer", "rms", "batch"]\n    """normalisation (default: \'layer\')"""\n' in sources[6]
    assert "    out_dir: str | Path\n" in sources[7]


@pytest.mark.parametrize(
    ("types", "kind", "functions"),
    [
        (keyword_types.TrainOptions, TrainConfig, [ng.train, ng.training, launcher.train_on_ranks]),
        (keyword_types.LoadOptions, LoadConfig, [ng.load, ng.evaluate]),
        (keyword_types.StreamOptions, SampleConfig, [ng.stream]),
        (keyword_types.SampleOptions, SampleConfig, [ng.sample, ng.stream_batch]),
        (keyword_types.RunOptions, RunConfig, [main_job.run]),
    ],
)
def test_functions_are_annotated_with_what_they_show_at_run_time(types, kind, functions):
    hints = typing.get_type_hints(types)
    assert not types.__required_keys__
    for name, hint in hints.items():
        declared = kind.__dataclass_fields__[name].type
        values = typing.get_args(hint)
        assert hint == declared or hint == declared | Path or {type(value) for value in values} == {declared}, name
        for value in values if typing.get_origin(hint) is typing.Literal else ():
            kind.from_dict({name: value})
    for function in functions:
        assert typing.get_type_hints(function)["options"] == typing.Unpack[types]
        shown = inspect.signature(function).parameters
        if function is not main_job.run:
            assert set(hints) == set(shown) & set(kind.names()) - {"dataset"}
            assert all(shown[name].default == getattr(kind, name) for name in hints)
    assert set(hints) - set(kind.names()) == set()


def test_preset_names_are_those_of_the_presets():
    assert typing.get_args(keyword_types.PresetName) == tuple(ng.PRESETS)


def test_paths_are_accepted_where_the_types_say_so(text_file):
    from tiny import TINY

    hints = typing.get_type_hints(keyword_types.RunOptions)
    assert {name for name, hint in hints.items() if hint == str | Path} == set(keyword_generator.PATH_OPTIONS)
    run = ng.train(Path("bottles.txt"), out_dir=Path("first"), trace=Path("traces"), **{**TINY, "max_iters": 6})
    assert list(Path("traces").iterdir())
    assert ng.train("bottles.txt", init_from=run.out_dir, max_iters=1, device="cpu", eval_iters=1).out_dir.is_dir()


def typed_pages() -> dict[str, str]:
    """The calls above, and the Python of the pages, by file name."""
    pages = {f"{page.stem.lower()}_page.py": "\n".join(code_blocks(page, "python")) for page in PAGES}
    return {"calls.py": CALLS, **{name: code for name, code in pages.items() if code and "modal" not in name}}


@pytest.fixture
def installed(tmp_path) -> Path:
    """A folder with files that use the package, and a virtual environment that has a copy of it installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    folder = Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": str(tmp_path / "venv")}))
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".typed"):
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (folder / "dependencies.pth").write_text(str(Path(numpy.__file__).parents[1]), encoding="utf-8")
    # PyTorch's types take mypy most of a minute, and those of the arguments do not need them
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\n[mypy-torch.*]\nfollow_imports = skip\n", encoding="utf-8"
    )
    for name, code in typed_pages().items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    return tmp_path


def expected_errors(column: int) -> set[tuple[str, int, str]]:
    """File, line and code of each error that the comments in `CALLS` announce."""
    numbered = enumerate(CALLS.splitlines(), start=1)
    return {("calls.py", n, line.split("# error ")[1].split()[column]) for n, line in numbered if "# error" in line}


def python_of(folder: Path) -> Path:
    (python,) = [path for path in folder.glob("venv/*/python*") if path.stem == "python"]
    return python


@pytest.mark.slow
def test_mypy_sees_wrong_options_types_and_choices(installed):
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python_of(installed)), *typed_pages()]
    done = subprocess.run(command, cwd=installed, capture_output=True, text=True, check=False)
    reported = re.findall(r"^(.*\.py):(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    found = {(name, int(line), code) for name, line, code in reported}
    assert found == expected_errors(0), done.stdout + done.stderr


@pytest.mark.skipif(not find_spec("pyright"), reason="pyright is not installed: with Node.js it takes 270 MB")
def test_pyright_sees_wrong_options_types_and_choices(installed):
    command = [sys.executable, "-m", "pyright", "--pythonpath", str(python_of(installed)), *typed_pages()]
    done = subprocess.run(command, cwd=installed, capture_output=True, text=True, check=False)
    reported = re.findall(r"^ *(?:.*/)?(\w+\.py):(\d+):\d+ - error: (?:.|\n  )*?\((\w+)\)$", done.stdout, re.MULTILINE)
    found = {(name, int(line), code) for name, line, code in reported}
    assert found == expected_errors(1), done.stdout + done.stderr
