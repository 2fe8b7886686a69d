"""Runs that live on a volume: against a run that nobody disturbed, and two machines that share one volume."""

import contextlib
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import nanogpt_lite as ng
from nanogpt_lite import files
from nanogpt_lite.checkpoint.checkpoint_file import SUFFIX
from nanogpt_lite.cloud import jobs, storage, sweeps
from nanogpt_lite.data import sources
from nanogpt_lite.tracking.records import CheckpointRecord

TEXT = "To be, or not to be, that is the question:\n" * 40
TINY = {"preset": "cpu", "block_size": 8, "batch_size": 2, "n_layer": 1, "n_head": 2, "n_embd": 8, "device": "cpu"}
TINY |= {"eval_interval": 4, "log_interval": 1, "warmup_iters": 2}


class FolderVolume:
    """What a machine sees of a volume: a folder of its own, and what all share. Neither works with an open file."""

    def __init__(self, mount: Path, shared: Path) -> None:
        self.mount, self.shared = mount, shared
        self.commits = 0
        shared.mkdir(exist_ok=True)
        self.reload()

    def commit(self):
        self.require_closed()
        self.commits += 1
        shutil.copytree(self.mount, self.shared, dirs_exist_ok=True)
        for path in [path for path in self.shared.rglob("*") if path.is_file()]:
            if not (self.mount / path.relative_to(self.shared)).exists():
                path.unlink()

    def reload(self):
        self.require_closed()
        shutil.rmtree(self.mount, ignore_errors=True)
        shutil.copytree(self.shared, self.mount)

    def require_closed(self):
        assert not [path for path in _open_files() if path.startswith(str(self.mount))]


def _open_files():
    """What this process has open or mapped, where the system tells."""
    if not Path("/proc/self/maps").exists():
        return []
    found = Path("/proc/self/maps").read_text().split()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in the meantime
            found.append(str(link.readlink()))
    return found


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Start work on another machine, in a folder of its own, with the shared volume."""
    numbers = iter(range(100))
    (tmp_path / "text.txt").write_text(TEXT)

    def start():
        folder = tmp_path / f"machine{next(numbers)}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        return storage.VolumeStorage(folder / "mount", FolderVolume(folder / "mount", tmp_path / "shared"))

    start.text = str(tmp_path / "text.txt")
    start.shared = tmp_path / "shared"
    return start


def undisturbed(machine, **options):
    """The bytes of `last` after the same training without a volume."""
    machine()
    jobs.prepare_job(storage.LocalStorage(), machine.text)
    run = ng.train("data/text", out_dir="runs/undisturbed", **{**TINY, **options})
    return (run.out_dir / f"last{SUFFIX}").read_bytes()


def train(home, machine, owner, **options):
    return jobs.train_job(home, owner=owner, dataset=machine.text, **{**TINY, **options})


def last_of(machine, run="text"):
    return (machine.shared / "runs" / run / f"last{SUFFIX}").read_bytes()


def test_another_machine_goes_on_to_the_same_bits(machine):
    expected = undisturbed(machine, max_iters=10, lr_decay_iters=10)
    jobs.prepare_job(machine(), machine.text)
    train(machine(), machine, "first", max_iters=6, lr_decay_iters=10)
    train(machine(), machine, "second", max_iters=10)
    assert last_of(machine) == expected
    steps = [record["step"] for record in ng.Run(machine.shared / "runs" / "text").metrics if record["kind"] == "step"]
    assert steps == list(range(1, 11))


def test_a_checkpoint_is_kept_when_it_is_written_and_whatever_ends_the_run(machine):
    home = machine()
    jobs.prepare_job(home, machine.text)
    folder = Path("runs/text")
    home.claim(folder, "me", anew=True)
    commits = home.volume.commits
    records = jobs.sync_checkpoints(ng.training("text", out_dir=folder, max_iters=50, **TINY), home, folder, "me")
    next(record for record in records if isinstance(record, CheckpointRecord))
    next(records)  # it puts the checkpoint home when it is asked for the next record
    deadline = time.monotonic() + 30
    while home.volume.commits == commits:
        assert time.monotonic() < deadline, "nothing was put home in the background"
        time.sleep(0.01)  # between two looks: the put runs on a thread of its own
    next(record for record in records if isinstance(record, CheckpointRecord) and record.step == 8)
    with pytest.raises(ZeroDivisionError):
        records.throw(ZeroDivisionError)
    assert (machine.shared / "runs/text" / f"last{SUFFIX}").read_bytes() == (folder / f"last{SUFFIX}").read_bytes()
    assert (machine.shared / "runs/text/metrics.jsonl").is_file()


def test_a_later_call_takes_the_run_over_and_the_earlier_one_stops(machine):
    first = machine()
    jobs.prepare_job(first, machine.text)
    folder = Path("runs/text")
    first.claim(folder, "first", anew=True)
    records = jobs.sync_checkpoints(ng.training("text", out_dir=folder, max_iters=50, **TINY), first, folder, "first")
    next(record for record in records if isinstance(record, CheckpointRecord))
    here = Path.cwd()
    train(machine(), machine, "second", max_iters=4)
    theirs = last_of(machine)
    os.chdir(here)
    with pytest.raises(ng.UserError, match="another call took over the run text"):
        list(records)
    assert last_of(machine) == theirs
    with pytest.raises(ng.UserError, match="another call took over"):
        train(machine(), machine, "first", max_iters=50)


def test_overwrite_counts_once_for_a_call_that_is_started_again(machine):
    train(machine(), machine, "old", max_iters=8)
    train(machine(), machine, "new", max_iters=4, overwrite=True, seed=5)
    begun = last_of(machine)
    again = train(machine(), machine, "new", max_iters=6, overwrite=True, seed=5)
    assert [record["step"] for record in again.metrics if record["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in again.metrics if record["kind"] == "start"] == [0, 4]
    assert last_of(machine) != begun


@pytest.mark.parametrize("other", [{"n_embd": 16}, {"preset": "shakespeare_char"}])
def test_another_network_under_the_same_name_is_refused(machine, other):
    train(machine(), machine, "first", max_iters=4)
    options = {**({} if "preset" in other else TINY), "max_iters": 8, **other}
    with pytest.raises(ng.UserError, match="another network"):
        jobs.train_job(machine(), owner="second", dataset=machine.text, **options)


def test_data_is_prepared_once(machine, monkeypatch):
    jobs.prepare_job(machine(), machine.text)
    monkeypatch.setattr(sources, "find_source", lambda *_, **__: pytest.fail("the text was read again"))
    train(machine(), machine, "me", max_iters=2)
    result = jobs.evaluate_job(machine(), "text", device="cpu")
    assert result["step"] == 2
    assert result["dataset"] == "data/text"


def test_a_machine_that_waits_sees_what_another_one_prepared(machine):
    waiting = machine()
    here = Path.cwd()
    jobs.prepare_job(machine(), machine.text)
    os.chdir(here)
    waiting.bring(Path("data/text"))
    assert Path("data/text/manifest.json").is_file()


def test_what_is_put_home_while_training_goes_on_is_never_newer_in_last_than_in_best(machine, monkeypatch):
    """Each file that is copied is followed by the training's next step, which replaces all of them."""
    home, folder = machine(), Path("runs/x")
    folder.mkdir(parents=True)
    (home.root / "runs").mkdir()

    def write(number):
        for name in ("best", "last"):
            (folder / f"{name}{SUFFIX}").write_text(number)
        (folder / "metrics.jsonl").write_text(number)

    write("1")
    copy = shutil.copyfile
    slow = SimpleNamespace(copyfile=lambda source, target: (copy(source, target), write("2")))
    monkeypatch.setattr(storage, "shutil", slow)
    home.put(folder)
    stored = machine.shared / "runs" / "x"
    assert (stored / f"last{SUFFIX}").read_text() == "1"
    assert (stored / f"best{SUFFIX}").read_text() == "2"
    assert (stored / "metrics.jsonl").read_text() == "2"


def test_a_run_starts_from_the_weights_of_another(machine):
    train(machine(), machine, "one", max_iters=4)
    run = train(machine(), machine, "two", max_iters=2, out_dir="child", init_from="runs/text")
    assert run.out_dir == Path("runs/child")
    assert run.metrics[-1]["step"] == 2


def test_a_run_whose_data_is_elsewhere_is_evaluated_where_that_is(machine, tmp_path):
    machine()
    data = ng.prepare(machine.text, out_dir=tmp_path / "elsewhere")
    home = machine()
    ng.train(data, **TINY, max_iters=2, out_dir=home.root / "runs/far")
    home.volume.commit()
    assert jobs.evaluate_job(home, "far")["step"] == 2
    shutil.rmtree(data.path)
    with pytest.raises(ng.UserError, match="there is no dataset, file or folder"):
        jobs.evaluate_job(home, "far")


def test_a_missing_run_is_told_with_the_ones_there_are(machine):
    home = machine()
    with pytest.raises(ng.UserError, match=r"no checkpoint of a run 'x'; train it: modal run modal_app.py::train"):
        jobs.find_run(home, "x")
    train(home, machine, "me", max_iters=2)
    with pytest.raises(ng.UserError, match="no checkpoint of a run 'x'; runs with one: text"):
        jobs.find_run(machine(), "x")
    assert jobs.find_run(machine()).out_dir == Path("runs/text")


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "", ".", "..", "a" * 101, "x\n", "-x"])
def test_a_name_leads_nowhere_else(name):
    with pytest.raises(ng.UserError, match="no plain name"):
        storage.require_safe_name(name, "run")


def test_a_text_that_was_sent_up_is_found(machine):
    home = machine()
    (home.root / "texts").mkdir()
    (home.root / "texts" / "mine.txt").write_text(TEXT)
    home.volume.commit()
    jobs.prepare_job(machine(), "texts/mine.txt")
    assert (machine.shared / "datasets/mine/train.bin").is_file()


def test_a_trial_that_goes_on_equals_a_whole_training(machine):
    jobs.prepare_job(machine(), machine.text)
    shape = {name: str(value) for name, value in TINY.items() if name not in ("preset", "eval_interval")}
    tried = sweeps.make_trials({**shape, "learning_rate": "1e-3, 5e-3"}, preset="cpu", steps=4, name="s")
    options = {"max_iters": 12, "eval_interval": 4}
    for trial in tried:
        jobs.train_job(
            machine(), owner=f"{trial.begin['out_dir']}", dataset="text", **{**trial.begin, "lr_decay_iters": 12}
        )
    jobs.train_job(machine(), owner="rest", **{**tried[1].go_on, **options})
    assert last_of(machine, "s-2") == undisturbed(machine, learning_rate=5e-3, **options)


def test_a_copy_that_was_overtaken_is_made_again(machine, monkeypatch):
    """The training replaces a checkpoint by one of the same size while it is copied, and then ends."""
    home, folder = machine(), Path("runs/x")
    folder.mkdir(parents=True)
    (folder / f"last{SUFFIX}").write_text("old")
    copy = shutil.copyfile

    def overtaken(source, target):
        copy(source, target)
        Path(source).write_text("new")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "shutil", SimpleNamespace(copyfile=overtaken))
        home.put(folder)
    home.put(folder)
    assert (machine.shared / "runs" / "x" / f"last{SUFFIX}").read_text() == "new"


def test_a_run_without_its_last_checkpoint_begins_anew(machine):
    """Killed after the first best or numbered checkpoint came home, and before the first last one."""
    train(machine(), machine, "me", max_iters=8, keep_every=2)
    for name in ("last", "best"):
        (machine.shared / "runs" / "text" / f"{name}{SUFFIX}").unlink()
    again = train(machine(), machine, "me", max_iters=4)
    assert again.metrics[-1]["step"] == 4
    assert not list((machine.shared / "runs" / "text").glob("step_*"))


@pytest.mark.parametrize("wrong", [{"n_head": 3}, {"block_size": 100_000}, {"dataset": "nix"}, {"min_lr": 9.0}])
def test_a_call_with_a_mistake_changes_nothing_at_home(machine, wrong):
    train(machine(), machine, "good", max_iters=4)
    before = {path: path.read_bytes() for path in machine.shared.rglob("*") if path.is_file()}
    for overwrite in (True, False):
        options = {**TINY, "dataset": machine.text, "out_dir": "text", "max_iters": 8, **wrong}
        with pytest.raises(ng.UserError):
            jobs.train_job(machine(), owner="bad", overwrite=overwrite, **options)
    after = {path: path.read_bytes() for path in machine.shared.rglob("*") if path.is_file()}
    assert after == before


def test_overwrite_is_not_forgotten_by_a_kill_at_any_moment(machine, monkeypatch):
    train(machine(), machine, "old", max_iters=8)
    home = machine()
    atomic_write = files.atomic_write

    def killed(path):
        if path.name == storage.OWNERS_FILE:
            raise KeyboardInterrupt
        return atomic_write(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "atomic_write", killed)
        with pytest.raises(KeyboardInterrupt):
            train(home, machine, "new", max_iters=4, overwrite=True, seed=5)
    home.volume.commit()  # as Modal does when a container ends
    again = train(machine(), machine, "new", max_iters=4, overwrite=True, seed=5)
    assert [record["step"] for record in again.metrics if record["kind"] == "start"] == [0]


def test_a_run_from_the_weights_of_another_reads_another_text_and_goes_on(machine):
    train(machine(), machine, "one", max_iters=4)
    letters = Path(machine.text).with_name("letters.txt")
    letters.write_text("that is to be\n" * 100)  # fewer characters than the first text has
    call = {**TINY, "owner": "two", "dataset": str(letters), "out_dir": "child", "init_from": "runs/text"}
    del call["n_embd"]  # the preset's is another one than the first run's
    jobs.train_job(machine(), **call, max_iters=4)
    run = jobs.train_job(machine(), **call, max_iters=8)
    assert [record["step"] for record in run.metrics if record["kind"] == "start"] == [0, 4]
    assert (machine.shared / "datasets" / "letters-for-text" / "train.bin").is_file()


def test_the_file_does_not_depend_on_who_prepared_the_data(machine):
    train(machine(), machine, "me", max_iters=4)
    assert last_of(machine) == undisturbed(machine, max_iters=4)


def test_a_warm_machine_forgets_what_home_forgot(machine):
    train(machine(), machine, "old", max_iters=4, keep_every=2)
    warm = machine()
    here = Path.cwd()
    jobs.find_run(warm, "text")
    assert Path(f"runs/text/step_000002{SUFFIX}").is_file()
    train(machine(), machine, "new", max_iters=4, overwrite=True)
    os.chdir(here)
    jobs.find_run(warm, "text")
    assert not Path(f"runs/text/step_000002{SUFFIX}").exists()
    assert not Path("runs/text", storage.OWNERS_FILE).exists()
