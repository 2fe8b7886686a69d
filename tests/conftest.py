"""Shared fixtures, the options of pytest, and the counts of injected faults."""

import sys
import time
from collections import Counter
from pathlib import Path

import browser_page
import error_recorder
import hypothesis
import parallel_workers
import pytest
from tiny import TINY

TEXT = "".join(f"{n} green bottles hanging on the wall, and if {n % 7} should fall;\n" for n in range(400))


def wait_for(condition):
    """Poll until `condition()` is true, for at most a minute. For what other processes do, such as writing a file."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true within 60 s"
        time.sleep(0.005)  # other processes send no event; the deadline decides, not this interval


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the slow tests, and more cases of the fuzz tests")


def pytest_configure(config):
    hypothesis.settings.register_profile("deterministic", derandomize=True)
    if not config.getoption("--slow"):  # which tries new cases each time
        hypothesis.settings.load_profile("deterministic")
    parallel_workers.start(config)
    error_recorder.start()


def pytest_unconfigure(config):
    if not parallel_workers.is_worker(config):
        error_recorder.stop()
    parallel_workers.stop(config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    ended = yield
    if parallel_workers.is_worker(item.config):
        parallel_workers.note_end(item.nodeid)
    return ended


def pytest_runtest_setup(item):
    if item.get_closest_marker("whole_suite") and parallel_workers.is_worker(item.config):
        others = [other for other in item.session.items if not other.get_closest_marker("whole_suite")]
        parallel_workers.wait_for_others(len(others))


PLATFORMS = {"linux": ("linux",), "posix": ("linux", "darwin")}  # marker: the values of sys.platform that it allows


def reason_to_skip(item, platform: str) -> str:
    """Why a test is skipped on a platform: the reason in its marker `linux` or `posix`; empty if it runs there."""
    for name, platforms in PLATFORMS.items():
        if (marker := item.get_closest_marker(name)) and platform not in platforms:
            (reason,) = marker.args  # a marker without a reason is an error
            return f"{reason}; this is {platform}"
    return ""


def pytest_collection_modifyitems(config, items):
    import torch

    skips = []
    files = {path.name for path in Path(__file__).parent.rglob("test_*.py")}
    if files - {item.path.name for item in items} or config.option.keyword or config.option.markexpr:
        skips.append(("whole_suite", pytest.mark.skip(reason="needs a run of the whole test suite")))
    items.sort(key=lambda item: bool(item.get_closest_marker("whole_suite")))  # they run last
    if not config.getoption("--slow"):
        skips.append(("slow", pytest.mark.skip(reason="slow; run with --slow")))
    if not torch.cuda.is_available():
        skips.append(("gpu", pytest.mark.skip(reason="needs a CUDA device, and this machine has none")))
    if reason := browser_page.missing_reason():
        skips.append(("browser", pytest.mark.skip(reason=reason)))
    for item in items:
        if reason := reason_to_skip(item, sys.platform):
            item.add_marker(pytest.mark.skip(reason=reason))
        for name, skip in skips:
            if item.get_closest_marker(name):  # not its keywords, which are also the names of folders
                item.add_marker(skip)


@pytest.fixture
def text_file(tmp_path, monkeypatch) -> Path:
    """bottles.txt in a temporary folder, which is also the current folder, so data/ and runs/ are created there."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bottles.txt"
    path.write_text(TEXT, encoding="utf-8", newline="\n")
    return path


@pytest.fixture
def trained(text_file, capsys):
    """A run on bottles.txt, with the options of TINY."""
    import nanogpt_lite as ng

    run = ng.train("bottles.txt", **TINY)
    capsys.readouterr()
    return run


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory):
    """Like `trained`, for all tests of a module; its folder is the current one while they run."""
    import nanogpt_lite as ng

    folder = tmp_path_factory.mktemp("shared")
    (folder / "bottles.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield ng.train("bottles.txt", **TINY)


@pytest.fixture
def fresh_fast_paths():
    """No fast path was checked or given up before, as in a new process. What the test changes of this is undone."""
    import torch

    from nanogpt_lite.device import fallbacks, fast_paths

    cuda = torch.backends.cuda
    kernels = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()

    def forget():
        fallbacks._reasons.clear()
        fast_paths._check_attention.cache_clear()
        fast_paths._check_pinned_memory.cache_clear()

    forget()
    yield
    forget()
    cuda.enable_flash_sdp(kernels[0])
    cuda.enable_mem_efficient_sdp(kernels[1])


CASE_COUNTS = pytest.StashKey[Counter[str]]()


@pytest.fixture
def case_counts(request) -> Counter[str]:
    """Counts of injected faults and fuzzed inputs, which pytest prints at the end. A test adds to it when it passes."""
    return request.config.stash.setdefault(CASE_COUNTS, Counter())


def pytest_sessionfinish(session):
    if parallel_workers.is_worker(session.config):
        session.config.workeroutput["case_counts"] = dict(session.config.stash.get(CASE_COUNTS, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Add the counts of a worker of pytest-xdist."""
    node.config.stash.setdefault(CASE_COUNTS, Counter()).update(
        getattr(node, "workeroutput", {}).get("case_counts", {})
    )


def pytest_terminal_summary(terminalreporter, config):
    counts = config.stash.get(CASE_COUNTS, {})
    if counts:
        terminalreporter.section("injected faults and fuzzed inputs (tests that failed are not counted)")
        for name, number in counts.items():
            terminalreporter.write_line(f"{number:>7,}  {name}")
