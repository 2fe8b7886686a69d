"""What the tests share: when a test is skipped and why, and a small text to train on."""

import time
from collections import Counter
from pathlib import Path

import error_recorder
import hypothesis
import pytest

TEXT = "".join(f"{n} green bottles hanging on the wall, and if {n % 7} should fall;\n" for n in range(400))


TINY = {  # options of a run that takes a moment
    "device": "cpu",
    "threads": 1,
    "block_size": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "ngram": 1,
    "dropout": 0.1,
    "batch_size": 4,
    "max_iters": 20,
    "eval_interval": 10,
    "warmup_iters": 2,
}


def wait_for(condition):
    """Wait until it holds, for a minute at most: what other processes do, in files or by ending, tells nobody."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.005)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_configure(config):
    hypothesis.settings.register_profile("the same each time", derandomize=True)
    if not config.getoption("--slow"):  # which tries other cases each time
        hypothesis.settings.load_profile("the same each time")
    error_recorder.listen()


def pytest_unconfigure():
    error_recorder.forget()


def pytest_collection_modifyitems(config, items):
    import torch

    skips = []
    files = {path.name for path in Path(__file__).parent.rglob("test_*.py")}
    if files - {item.path.name for item in items} or config.option.keyword or config.option.markexpr:
        skips.append(("whole_suite", pytest.mark.skip(reason="looks at what all other tests have met")))
    items.sort(key=lambda item: "whole_suite" in item.keywords)  # they come last
    if not config.getoption("--slow"):
        skips.append(("slow", pytest.mark.skip(reason="slow; run with --slow")))
    if not torch.cuda.is_available():
        skips.append(("gpu", pytest.mark.skip(reason="needs a CUDA device, and there is none here")))
    for item in items:
        for name, skip in skips:
            if name in item.keywords:
                item.add_marker(skip)


@pytest.fixture
def text_file(tmp_path, monkeypatch) -> Path:
    """bottles.txt in a folder of its own, which is the current folder too: data/ and runs/ go there."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bottles.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def trained(text_file, capsys):
    """A run on bottles.txt, with the options of TINY."""
    import nanogpt_lite as ng

    run = ng.train("bottles.txt", **TINY)
    capsys.readouterr()
    return run


FIGURES = pytest.StashKey[Counter[str]]()


@pytest.fixture
def figures(request) -> Counter[str]:
    """What the tests of trust count, for the lines at the end: a figure that is there is one whose test passed."""
    return request.config.stash.setdefault(FIGURES, Counter())


def pytest_terminal_summary(terminalreporter, config):
    counted = config.stash.get(FIGURES, {})
    if counted:
        terminalreporter.section("faults injected, cases tried: lost, none but for what failed above")
        for name, number in counted.items():
            terminalreporter.write_line(f"{number:>7,}  {name}")
