"""The benchmark on a GPU: reading the logs of trainings, the table with missing values, parts that fail, its tests."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import wait_for
from emulated_graph import emulated_graphs

import nanogpt_lite as ng
from nanogpt_lite.generation import cpu_linear

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


# what nanoGPT's train.py prints: an evaluation before the first step, and at each `eval_interval`
LINES = [
    (0.0, "tokens per iteration will be: 16,384"),
    (1.0, "step 0: train loss 4.2874, val loss 4.2823"),
    (9.0, "iter 0: loss 4.2659, time 8000.00ms, mfu -100.00%"),  # with the compilation
    (11.0, "iter 10: loss 3.2061, time 20.00ms, mfu 18.71%"),
    (12.0, "iter 20: loss 2.7902, time 20.00ms, mfu 18.71%"),
    (20.0, "step 25: train loss 2.4, val loss 2.5"),
    (20.1, "saving checkpoint to out"),
    (21.0, "iter 30: loss 2.6, time 20.00ms, mfu 18.71%"),
    (24.0, "iter 40: loss 2.6, time 20.00ms, mfu 18.71%"),
    (30.0, "step 50: train loss 2.3, val loss 2.6"),
]


def test_log_of_nanogpt_has_step_times_without_evaluations_and_compilation():
    from training_logs import parse_nanogpt

    log = parse_nanogpt(LINES)
    assert log.step_times == pytest.approx([0.2, 0.1, 0.3])
    assert log.evaluations == [(0, 4.2823), (25, 2.5), (50, 2.6)]
    assert log.tokens_per_second == pytest.approx(16384 / 0.2)
    assert log.seconds == pytest.approx(50 * 0.2)
    assert (log.best(), log.last_loss) == ((25, 2.5), 2.6)
    assert log.seconds_to(3.0) == pytest.approx(25 * 0.2)
    assert log.seconds_to(2.4) is None


def test_log_without_steps_or_evaluations_is_a_failure_outside_the_program():
    from training_logs import parse_nanogpt

    log = parse_nanogpt([(0.0, "number of parameters: 10.65M")])
    for read in (lambda: log.tokens_per_second, lambda: log.last_loss, log.best, lambda: log.seconds):
        with pytest.raises(ng.ExternalError, match="log of the training has no"):
            read()


def test_stream_notes_the_time_when_a_line_is_complete():
    from probe import _TimedLines

    stream = _TimedLines()
    print("one", end="", file=stream)
    between = time.perf_counter()
    print(" line\nand another", file=stream)
    stream.write("not complete")
    assert [line for _, line in stream.lines] == ["one line", "and another"]
    assert all(between <= seconds <= time.perf_counter() for seconds, _ in stream.lines)


def test_sampling_on_a_gpu_is_timed_without_the_recording(trained, monkeypatch):
    import probe

    load, stream_batch, counts = ng.load, ng.stream_batch, []

    def spy(*args, **options):
        yield from stream_batch(*args, **options)
        counts.append(log.counts())

    monkeypatch.setattr(ng, "load", lambda run, device, **options: load(run, **options))
    monkeypatch.setattr(ng, "stream_batch", spy)
    monkeypatch.setattr(cpu_linear, "optimize_linears", lambda *_: None)  # it has no effect on a GPU
    with emulated_graphs(monkeypatch) as log:
        measured = probe.sample_lite(str(trained.out_dir), "2", "float32", "cuda", "40")
    assert measured["tokens_per_second"] > 0
    warm_up, both = counts
    assert (warm_up["capture"], both["capture"]) == (1, 1)
    assert both["replay"] - warm_up["replay"] == warm_up["replay"] - 1 > 0, "the first text also checks its graph"


def test_rows_have_the_runs_of_each_program_and_reasons_for_missing_values():
    from gpu_rows import (
        LITE,
        MODERN_LOSS,
        MODERN_MEMORY,
        NANOGPT,
        NOT_YET,
        ROWS,
        SPRINT,
        STEP,
        TEN_SAMPLES,
        Measurements,
    )

    measurements = Measurements()
    for loss, sprint in ((1.36, {SPRINT.name: 5.0}), (1.38, {SPRINT.name: 7.0}), (1.5, {})):
        measurements.add(LITE, (MODERN_LOSS, SPRINT), {MODERN_LOSS.name: loss, **sprint})
    measurements.note_no_time(LITE, (MODERN_LOSS, SPRINT))  # of a fourth seed
    measurements.add_failure(NANOGPT, (MODERN_LOSS,), "…ended with status 1")
    measurements.add_failure(LITE, (STEP[False],), "…a | b")
    measurements.add(NANOGPT, (STEP[False],), {STEP[False].name: 300.0})
    measurements.note_no_time(LITE, (TEN_SAMPLES,))
    rows = {row["name"]: row for row in measurements.rows({STEP[False].name: 1000.0})}
    assert list(rows) == [row.name for row in ROWS]
    modern = rows[MODERN_LOSS.name]
    assert (modern["nanogpt_lite"], modern["nanogpt"], modern["met"]) == (1.38, None, True)
    assert modern["nanogpt_lite_runs"] == [1.36, 1.38, 1.5]
    assert modern["reason"] == "nanoGPT: …ended with status 1"
    assert (rows[SPRINT.name]["nanogpt_lite"], rows[SPRINT.name]["reason"]) == (
        6.0,
        f"nanogpt_lite: not reached; nanoGPT: {NOT_YET}",
    )
    step = rows[STEP[False].name]
    assert (step["nanogpt_lite"], step["nanogpt"], step["estimate"]) == (None, 300.0, 1000.0)
    assert (step["ratio"], step["met"], step["reason"]) == (None, None, "nanogpt_lite: …a | b")
    assert rows[TEN_SAMPLES.name]["reason"] == f"nanogpt_lite: the time was over; nanoGPT: {NOT_YET}"
    assert rows[MODERN_MEMORY.name]["reason"] == f"nanogpt_lite: {NOT_YET}", "nanoGPT has no such row"


def test_table_shows_estimates_beside_the_values_and_the_reasons():
    from gpu_rows import LITE, NANOGPT, STEP, Measurements
    from table import describe_environment, markdown

    measurements = Measurements()
    measurements.add(LITE, (STEP[True],), {STEP[True].name: 2000.0})
    measurements.add_failure(NANOGPT, (STEP[True],), "…a | b")
    report = describe_environment("python x.py")
    text = markdown({**report, "rows": measurements.rows({STEP[True].name: 2500.0})})
    assert "| row | unit | nanogpt_lite | estimate | nanoGPT | ratio | target | |" in text
    expected = "| shakespeare_char, compiled | tokens/s | 2,000.0 | 2,500.0 |  |  | ratio ≥ 1 | nanoGPT: …a / b |"
    assert expected in text
    assert "| estimate |" not in markdown({**report, "rows": measurements.rows({})})


def test_estimates_are_those_of_the_same_gpu_as_tokens_per_second(tmp_path):
    from estimates import read_estimates

    path = tmp_path / "launches.json"
    assert read_estimates(path, "NVIDIA H100 80GB HBM3") == {}
    step, token = {"estimated_ms": {"H100": 8.0, "T4": 80.0}}, {"estimated_ms": {"H100": 0.5}}
    names = ("shakespeare_char", "shakespeare_char, compiled", "modern", "modern, compiled", "nanoGPT")
    tokens = ("shakespeare_char, one sample", "shakespeare_char, ten samples")
    path.write_text(json.dumps({"steps": dict.fromkeys(names, step), "tokens": dict.fromkeys(tokens, token)}))
    speeds = {
        f"{preset}, {name}": 2_048_000 for preset in ("shakespeare_char", "modern") for name in ("eager", "compiled")
    }
    samples = {"one sample of 500 tokens": 2_000, "ten samples of 500 tokens": 20_000}
    assert read_estimates(path, "NVIDIA H100 80GB HBM3") == speeds | samples
    assert read_estimates(path, "Tesla T4") == dict.fromkeys(speeds, 204_800)
    assert read_estimates(path, "NVIDIA H100 PCIe") == read_estimates(path, "cpu") == {}


def test_estimates_in_the_results_have_the_form_that_is_read():
    from estimates import ESTIMATES, ROWS, read_estimates

    if not ESTIMATES.is_file():
        pytest.skip("benchmarks/launches.py has written no estimates yet")
    names = {row.name for rows in ROWS.values() for row, _ in rows.values()}
    assert read_estimates(ESTIMATES, "NVIDIA H100 80GB HBM3").keys() == names


def test_outcome_counts_the_tests_of_pytest_and_has_the_messages_of_failed_ones(tmp_path):
    from gpu_tests import read_outcome

    (tmp_path / "test_made_up.py").write_text(
        "import pytest\n"
        "@pytest.fixture\n"
        "def broken():\n    raise OSError('no GPU')\n"
        "@pytest.mark.parametrize('n', [1, 2, 3])\n"
        "def test_passes(n): pass\n"
        "def test_skipped(): pytest.skip('none')\n"
        "def test_wrong(): assert 1 == 2, 'numbers differ'\n"
        "def test_broken(broken): pass\n"
    )
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--junitxml={report}", "test_made_up.py"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 1
    outcome = read_outcome(report)
    assert (outcome.passed, outcome.skipped) == (3, 1)
    assert outcome.failed.keys() == {"test_made_up::test_wrong", "test_made_up::test_broken"}
    assert "numbers differ" in outcome.failed["test_made_up::test_wrong"]
    assert str(outcome).startswith("Tests that need a GPU: 3 passed, 2 failed, 1 skipped\n- test_made_up::test_wrong: ")


def test_without_pytest_the_outcome_is_the_reason(monkeypatch):
    import gpu_tests

    def fail(*_):
        raise ng.ExternalError("python -m pytest … ended with status 1: No module named pytest")

    monkeypatch.setattr(gpu_tests, "launch", fail)
    outcome = gpu_tests.run_gpu_tests({}, 5)
    assert str(outcome).startswith("Tests that need a GPU: not run (…")
    assert outcome.reason.endswith("No module named pytest")


def test_only_files_with_tests_for_a_gpu_are_run(monkeypatch, tmp_path):
    import gpu_tests

    calls = []
    (tmp_path / "tests/a").mkdir(parents=True)
    (tmp_path / "tests/a/test_one.py").write_text("@pytest.mark.gpu\n")
    (tmp_path / "tests/test_two.py").write_text("pass\n")
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "read_outcome", lambda report: gpu_tests.Outcome())
    monkeypatch.setattr(gpu_tests, "launch", lambda *arguments: calls.append(arguments))
    gpu_tests.run_gpu_tests({"A": "b"}, 7)
    ((command, cwd, environment, timeout),) = calls
    assert [word for word in command if word.endswith(".py")] == [str(tmp_path / "tests/a/test_one.py")]
    assert (cwd, environment, timeout) == (tmp_path, {"A": "b"}, 7)


@pytest.mark.linux("reads /proc")
def test_command_that_takes_too_long_is_ended_with_the_processes_that_it_started(tmp_path):
    from harness import launch

    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        "open('pid', 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(ng.ExternalError, match="was not done after 1 s"):
        launch([sys.executable, "-S", "-c", code], tmp_path, {}, timeout=1)
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_running(pid))


def is_running(pid):
    """Whether there is a process of this id; one that has ended and was not waited for does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """A function that runs the benchmark with made-up parts; its exit status. The results are in `tmp_path`/out."""
    import on_gpu
    from gpu_tests import Outcome
    from harness import Harness

    from nanogpt_lite.device import devices

    harness = Harness(tmp_path, 1, None, "cpu")  # type: ignore[arg-type]  # made-up parts need no dataset
    monkeypatch.setattr(on_gpu, "require_clone", lambda clone: None)
    monkeypatch.setattr(on_gpu, "set_up_lite", lambda folder, device: harness)
    monkeypatch.setattr(devices, "device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    monkeypatch.setattr(on_gpu, "read_estimates", lambda path, device: {"shakespeare_char, eager": 5.0 * len(device)})

    def run(parts, *options, set_up_nanogpt=lambda *_: None, outcome=None):
        monkeypatch.setattr(on_gpu, "set_up_nanogpt", set_up_nanogpt)
        monkeypatch.setattr(on_gpu, "run_gpu_tests", lambda *_: outcome or Outcome(passed=3))
        monkeypatch.setattr(on_gpu, "make_parts", lambda short: parts)
        words = ["--nanogpt", str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "out"), *options]
        monkeypatch.setattr(sys, "argv", ["on_gpu.py", *words])
        return on_gpu.main()

    return run


def part(program, row, value):
    """A part with one row. `value`: what it measures, or an error."""
    from gpu_parts import Part

    def measure(harness):
        if isinstance(value, Exception):
            raise value
        return {row.name: value(harness) if callable(value) else value}

    return Part(row.name, program, (row,), measure)


def test_part_that_fails_leaves_its_reason_and_the_next_is_measured(measure, tmp_path, capsys):
    from gpu_rows import LITE, LOSS, NANOGPT, STEP

    long_error = ng.ExternalError(f"python {'x' * 500} ended with status 1: no kernel image")
    parts = [
        part(LITE, STEP[False], 900.0),
        part(NANOGPT, STEP[False], 300.0),
        part(LITE, LOSS, long_error),
        part(NANOGPT, LOSS, 1.5),
    ]
    assert measure(parts) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "on_gpu-A100-SXM4-40GB.json",
        "on_gpu-A100-SXM4-40GB.md",
    ]
    report = json.loads((tmp_path / "out/on_gpu-A100-SXM4-40GB.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert (rows[STEP[False].name]["ratio"], rows[STEP[False].name]["estimate"]) == (3.0, 105.0)
    assert (rows[LOSS.name]["nanogpt_lite"], rows[LOSS.name]["nanogpt"]) == (None, 1.5)
    assert rows[LOSS.name]["reason"].endswith("ended with status 1: no kernel image")
    assert len(rows[LOSS.name]["reason"]) < 200
    assert report["complete"]
    assert report["failures"] == [f"{LITE}: {LOSS.name}"]
    assert report["tests"]["passed"] == 3
    printed = capsys.readouterr()
    assert printed.out == (tmp_path / "out/on_gpu-A100-SXM4-40GB.md").read_text()
    assert "Tests that need a GPU: 3 passed, 0 failed, 0 skipped" in printed.out
    assert f"error: 1 parts or tests failed: {LITE}: {LOSS.name}" in printed.err


def test_nanogpt_that_cannot_be_set_up_leaves_the_rows_of_this_program(measure, tmp_path):
    from gpu_rows import LITE, NANOGPT, STEP

    def fail(harness, clone):
        raise ng.ExternalError("prepare.py ended with status 1")

    assert measure([part(LITE, STEP[True], 900.0), part(NANOGPT, STEP[True], 1.0)], set_up_nanogpt=fail) == 1
    (path,) = (tmp_path / "out").glob("*.json")
    row = next(row for row in json.loads(path.read_text())["rows"] if row["name"] == STEP[True].name)
    assert (row["nanogpt_lite"], row["nanogpt"]) == (900.0, None)
    assert row["reason"] == "nanoGPT: …prepare.py ended with status 1"


def test_interrupted_benchmark_leaves_the_parts_that_were_measured_and_an_earlier_table(measure, tmp_path):
    from gpu_rows import LITE, LOSS, STEP

    def interrupt(harness):
        raise KeyboardInterrupt

    assert measure([part(LITE, STEP[False], 900.0)]) == 0
    earlier = (tmp_path / "out/on_gpu-A100-SXM4-40GB.md").read_bytes()
    assert measure([part(LITE, STEP[False], 800.0), part(LITE, LOSS, interrupt)]) == 130
    assert (tmp_path / "out/on_gpu-A100-SXM4-40GB.md").read_bytes() == earlier
    report = json.loads((tmp_path / "out/on_gpu-A100-SXM4-40GB-incomplete.json").read_text())
    assert not report["complete"]
    assert report["rows"][0]["nanogpt_lite"] == 800.0
    assert "not measured yet" in (tmp_path / "out/on_gpu-A100-SXM4-40GB-incomplete.md").read_text()


def test_part_has_at_most_half_of_the_time_and_none_is_started_when_it_is_over(measure, tmp_path):
    from gpu_rows import LITE, LOSS, STEP

    limits = []

    def note_limit(harness):
        limits.append(harness.deadline - time.monotonic())
        return 900.0

    assert measure([part(LITE, STEP[False], note_limit)], "--seconds", "1000") == 0
    assert limits == [pytest.approx(500, abs=20)]
    assert measure([part(LITE, LOSS, note_limit)], "--seconds", "10") == 0
    assert len(limits) == 1
    report = json.loads((tmp_path / "out/on_gpu-A100-SXM4-40GB.json").read_text())
    assert next(row for row in report["rows"] if row["name"] == LOSS.name)["reason"].startswith(
        f"{LITE}: the time was over"
    )


def test_failed_test_is_a_failure(measure, capsys):
    from gpu_rows import LITE, STEP
    from gpu_tests import Outcome

    outcome = Outcome(failed={"test_loop::test_a_gpu": "differs"})
    assert measure([part(LITE, STEP[False], 900.0)], outcome=outcome) == 1
    assert "1 parts or tests failed: test_loop::test_a_gpu" in capsys.readouterr().err


def test_short_result_has_files_of_its_own(measure, tmp_path):
    from gpu_rows import LITE, STEP

    assert measure([part(LITE, STEP[False], 900.0)], "--short") == 0
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"on_gpu-A100-SXM4-40GB-short"}


def test_parts_have_each_row_of_each_program_and_valid_options():
    from gpu_parts import lite_options, make_parts
    from gpu_rows import LITE, LITE_ONLY, NANOGPT, ROWS

    for short in (False, True):
        parts = make_parts(short=short)
        rows = {
            program: {row for part in parts if part.program == program for row in part.rows}
            for program in (LITE, NANOGPT)
        }
        assert rows == {LITE: set(ROWS), NANOGPT: set(ROWS) - set(LITE_ONLY)}
        for steps in (None, 400):
            words = lite_options(compiled=True, steps=steps, short=short)
            options = {
                name.removeprefix("--"): json.loads(value.lower())
                for name, value in zip(words[::2], words[1::2], strict=True)
            }
            for preset in ("shakespeare_char", "modern"):
                config = ng.TrainConfig.from_dict({**ng.PRESETS[preset], **options})
                assert config.compile
                assert config.max_iters == (20 if short else steps or ng.PRESETS[preset].get("max_iters", 5000))
