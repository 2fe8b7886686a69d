"""The command tests/fuzz.py: it finds failures, crashes and hangs, reports them, repeats an input, and goes on."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fuzz
import pytest
from fuzzing.campaign import inputs_before, make_tasks
from fuzzing.registry import TARGETS
from fuzzing.target import Target, make_input

import nanogpt_lite as ng

COMMAND = Path(fuzz.__file__)
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


class Broken(Target[int]):
    """Its input is its number, so that a test knows what each one does."""

    name, share = "broken", 3

    def generate(self, rng: random.Random) -> int:
        numbers = {random.Random(f"0/{self.name}/{number}").getstate(): number for number in range(20)}
        return numbers[rng.getstate()]

    def run(self, example: int) -> None:
        match example:
            case 1:
                raise ng.UserError("refused; give another input")
            case 2:
                raise ng.UserError("a message\nof three\nlines")
            case 3:
                _parse(example)
            case 5:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 7:
                time.sleep(1000)
            case 8:
                bytearray(2**35)
            case 9:
                Path("executed").touch()


class Unstartable(Broken):
    name, share = "unstartable", 1

    def __init__(self) -> None:
        raise ValueError("no files")


def _parse(number: int) -> None:
    raise KeyError(f"a bug at {number}")


def rows(text: str) -> dict[str, list[str]]:
    """The cells of a Markdown table, by the first one."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {name: rest for name, *rest in cells}


@pytest.mark.slow  # a campaign of its own
@needs_signals
def test_failures_crashes_and_hangs_are_found_and_do_not_stop_the_rest(capsys):
    argv = ["--inputs", "16", "--processes", "2", "--timeout", "2"]
    assert fuzz.main(argv, [Broken, Unstartable]) == 1
    out, err = capsys.readouterr()
    assert rows(out)["broken"][:4] == ["12", "5", "1", "6"]  # 0, 4, 6, 10 and 11 are accepted
    assert rows(out)["all"][:4] == ["12", "5", "1", "6"]
    assert "unstartable cannot start: ValueError" in err
    found = dict(re.findall(r"^broken failed on input (\d+): (.*)", err, re.MULTILINE))
    assert found.keys() == {"2", "3", "5", "7", "8", "9"}
    assert found["2"].startswith("AssertionError")
    assert found["3"].startswith("KeyError at test_fuzzing.py:")
    assert "SIGSEGV" in found["5"]
    assert found["7"] == "hang: no result after 2 s"
    assert "MemoryError" in found["8"] or sys.platform != "linux"
    assert "in run" in err  # the stack of the hang
    assert "KeyError: 'a bug at 3'" in err
    assert "repeat it with: python tests/fuzz.py --seed 0 --only broken --first 3 --inputs 1" in err
    assert "- broken, 1 times: hang: no result after 2 s" in out


@pytest.mark.slow  # a campaign of its own
def test_the_reported_command_repeats_the_input_and_a_correct_one_succeeds(capsys):
    argv = ["--seed", "0", "--only", "broken", "--inputs", "1", "--first"]
    assert fuzz.main([*argv, "3"], [Broken, Unstartable]) == 1
    assert "KeyError: 'a bug at 3'" in capsys.readouterr().err
    assert fuzz.main([*argv, "4"], [Broken, Unstartable]) == 0
    assert rows(capsys.readouterr().out)["broken"][:4] == ["1", "1", "0", "0"]


def test_input_depends_on_seed_target_and_number_alone(tmp_path, monkeypatch):
    for kind in TARGETS:
        examples = []
        for numbers in ([0, 1, 2, 3, 4], [3, 4]):
            folder = tmp_path / f"{kind.name}-{len(numbers)}"
            folder.mkdir()
            monkeypatch.chdir(folder)
            target = kind()
            examples.append([repr(make_input(target, 7, number)) for number in numbers])
        assert examples[0][3:] == examples[1], kind.name
        assert repr(make_input(target, 8, 3)) != examples[0][3] or repr(make_input(target, 8, 4)) != examples[0][4]


def test_shares_divide_a_campaign_and_its_parts_are_the_whole():
    assert sum(target.share for target in TARGETS) == 1000
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    assert inputs_before(5000, TARGETS) == {target.name: 5 * target.share for target in TARGETS}

    def inputs(first, count):
        tasks = make_tasks(TARGETS, seed=0, first=first, inputs=count)
        return [(task.target.name, n) for task in tasks for n in range(task.first, task.first + task.count)]

    whole = inputs(0, 9000)
    assert len(whole) == len(set(whole)) == 9000
    assert sorted(inputs(0, 4321) + inputs(4321, 9000 - 4321)) == sorted(whole)
    assert Counter(name for name, _ in inputs(17, 1000)) == {target.name: target.share for target in TARGETS}


@pytest.mark.slow
def test_the_command_tries_all_targets():
    command = [sys.executable, str(COMMAND), "--inputs", "1000", "--processes", "2", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(rows(done.stdout)) == {"target", "all", *(target.name for target in TARGETS)}
    assert rows(done.stdout)["all"][0] == "1,000"


def test_ctrl_c_prints_the_table_so_far_and_how_to_continue(monkeypatch, capsys):
    def interrupt(bar, number):
        if number > 2000:
            raise KeyboardInterrupt

    monkeypatch.setattr(fuzz, "show_progress", interrupt)
    argv = ["--inputs", "1000000", "--processes", "1", "--only", "option-values", "--only", "option-texts"]
    assert fuzz.main(argv) == 130
    out, err = capsys.readouterr()
    tried = int(rows(out)["all"][0].replace(",", ""))
    assert tried > 2000
    first, remaining = map(int, re.findall(r"continue with --first (\d+) --inputs (\d+)", err)[0])
    assert 0 < first <= tried
    assert first + remaining == 1_000_000


def test_unknown_target_and_no_inputs_are_refused(capsys):
    for argv in (["--only", "nothing"], ["--inputs", "0"]):
        with pytest.raises(SystemExit) as ended:
            fuzz.main(argv)
        assert ended.value.code == 2
    assert "invalid choice: 'nothing'" in capsys.readouterr().err
