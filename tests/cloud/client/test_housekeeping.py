"""Runs on the Volume are listed, downloaded and deleted; nothing else changes."""

import json
from pathlib import Path

import pytest
from fake_volume import GOLDEN, GOLDEN_RUNS, FakeVolume, volume_of_version_0_1
from shared_volume import SharedDict

import nanogpt_lite as ng
from nanogpt_lite.cloud.calls import Call
from nanogpt_lite.cloud.client import housekeeping
from nanogpt_lite.cloud.client.plans import Plan
from nanogpt_lite.cloud.client.rental import Rental
from nanogpt_lite.cloud.client.stored_files import StoredFiles
from nanogpt_lite.cloud.client.volume_names import GPU_TIME_FILE


@pytest.fixture
def volume(tmp_path, monkeypatch):
    """A Volume that version 0.1 wrote; the current folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return volume_of_version_0_1(tmp_path / "volume")


def bring(volume, out_dir="", **options):
    return housekeeping.bring_run(StoredFiles(volume), volume, out_dir, **options)


def delete(volume, out_dir, reservations=None):
    return housekeeping.delete_run(StoredFiles(volume), volume, reservations or SharedDict(), out_dir)


def test_volume_without_runs_says_how_to_train_one(tmp_path):
    listed = housekeeping.format_runs(StoredFiles(FakeVolume(tmp_path)))
    assert listed == "there are no runs yet; train one: modal run modal_app.py::train"


def test_table_has_a_line_for_each_run_with_its_loss_and_what_it_cost(volume):
    calls = {
        "first": {"gpu": "L4", "count": 2, "seconds": 1000.0, "attempts": 1},
        "second": {"gpu": "H100", "count": 1, "seconds": 500, "attempts": 3},
        "elsewhere": {"gpu": "NVIDIA Future", "count": 1, "seconds": 7.0, "attempts": 1},
        "damaged": {"gpu": "L4"},
        "": None,
    }
    (volume.folder / "runs/modern" / GPU_TIME_FILE).write_text(json.dumps(calls), encoding="utf-8")
    header, *rows = [line.split("  ") for line in housekeeping.format_runs(StoredFiles(volume)).splitlines()]
    rows = [[cell.strip() for cell in row if cell] for row in rows]
    assert [cell.strip() for cell in header if cell] == [
        *("run", "dataset", "step", "val loss", "GPU s", "dollars", "last change")
    ]
    assert [row[0] for row in rows] == list(GOLDEN_RUNS)
    host = 4 * 0.0000131 + 8 * 0.00000222  # dollars a second, beside each GPU
    dollars = 1000 * 2 * (0.000222 + host) + 500 * (0.001097 + host)
    for run, dataset, step, loss, seconds, cost, _ in rows:
        losses = [r["val_loss"] for r in ng.Run(GOLDEN / "runs" / run).metrics if r["kind"] == "eval"]
        assert (dataset, step, loss) == (ng.Run(GOLDEN / "runs" / run).data_folder.name, "20", f"{min(losses):.4f}")
        assert (seconds, cost) == (("1507", f"{dollars:.2f}") if run == "modern" else ("0", "0.00"))


def test_run_without_records_is_listed(tmp_path):
    (tmp_path / "runs/bare").mkdir(parents=True)
    (tmp_path / "runs/bare/last.safetensors").write_bytes(b"")
    _, line = housekeeping.format_runs(StoredFiles(FakeVolume(tmp_path))).splitlines()
    assert line.split()[:6] == ["bare", "?", "?", "-", "0", "0.00"]


@pytest.mark.parametrize("out_dir", ["modern", "runs/modern"])
def test_delete_removes_the_run_alone_and_frees_its_name(volume, out_dir):
    before, shared = volume.contents(), SharedDict()
    Call("first", shared).reserve_run("modern")
    Call("first", shared).reserve_run("plain")
    assert delete(volume, out_dir, shared) == "modern"
    assert volume.contents() == {p: c for p, c in before.items() if not p.startswith("runs/modern/")}
    Call("second", shared).reserve_run("modern")
    with pytest.raises(ng.UserError, match="another call"):
        Call("second", shared).reserve_run("plain")


def test_run_without_a_checkpoint_can_be_deleted(volume):
    (volume.folder / "runs/begun").mkdir()
    assert delete(volume, "begun") == "begun"
    assert not (volume.folder / "runs/begun").exists()


@pytest.mark.parametrize("out_dir", ["", "typo", ".", "./", "..", "../datasets", "runs", "runs/", "runs/.", "plain/.."])
def test_delete_of_no_run_removes_nothing(volume, out_dir):
    before = volume.contents()
    with pytest.raises(ng.UserError, match="no run .* to delete .*bpe, bytes, modern, plain|invalid run name"):
        delete(volume, out_dir)
    assert volume.contents() == before


def test_bring_downloads_all_files_of_a_run(volume):
    (volume.folder / "runs/plain/trace").mkdir()
    (volume.folder / "runs/plain/trace/rank0.json").write_bytes(b"trace" * 1000)
    before = volume.contents()
    folder = bring(volume)  # the newest
    assert folder == Path("runs/modal-plain")
    downloaded = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    stored = {p.removeprefix("runs/plain/"): c for p, c in before.items() if p.startswith("runs/plain/")}
    del stored["owners"]
    assert downloaded == stored
    assert volume.contents() == before
    assert bring(volume, "runs/bytes", to="elsewhere/b") == Path("elsewhere/b")
    assert ng.summary("elsewhere/b")["step"] == 20


def test_bring_replaces_a_run_only_with_overwrite(volume):
    Path("runs/modal-plain").mkdir(parents=True)
    Path("runs/modal-plain/best.safetensors").write_bytes(b"mine")
    with pytest.raises(ng.UserError, match=r"modal-plain has a run already; .*`to`.*`overwrite=True`"):
        bring(volume, "plain")
    assert Path("runs/modal-plain/best.safetensors").read_bytes() == b"mine"
    bring(volume, "plain", overwrite=True)
    expected = (GOLDEN / "runs/plain/best.safetensors").read_bytes()
    assert Path("runs/modal-plain/best.safetensors").read_bytes() == expected


def test_download_that_is_cut_short_leaves_the_old_file_and_no_other(volume, monkeypatch):
    bring(volume, "plain")
    before = {path: path.read_bytes() for path in Path("runs/modal-plain").iterdir()}

    def cut_short(path):
        yield b"the first part"
        raise ConnectionError(path)

    monkeypatch.setattr(volume, "read_file", cut_short)
    with pytest.raises(ConnectionError):
        bring(volume, "plain", overwrite=True)
    assert {path: path.read_bytes() for path in Path("runs/modal-plain").iterdir()} == before


def test_unknown_run_is_not_brought(volume):
    with pytest.raises(ng.UserError, match="no checkpoint of a run 'typo'; runs with one: bpe, bytes, modern, plain"):
        bring(volume, "typo")
    assert not Path("runs").exists()


@pytest.mark.parametrize("trace", ["", "traces"])
def test_pictures_and_traces_of_a_training_are_downloaded_and_the_rest_is_named(volume, trace, capsys):
    run = volume.folder / "runs/plain"
    (run / "trace").mkdir()
    for name, content in {"loss.png": b"picture", "trace/a.json": b"a", "trace/b.json": b"b"}.items():
        (run / name).write_bytes(content)
    plan = Plan({"trace": trace} if trace else {}, Rental((), 60), {})
    verdict = "as a normal text" if trace else ""
    trained = {"run": "plain", "step": 20, "reason": "max_iters", "best_val_loss": 1.5, "verdict": verdict}
    assert housekeeping.report_training(volume, plan, trained) == trained
    here = {path.as_posix(): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    traces = {"traces/a.json": b"a", "traces/b.json": b"b"} if trace else {}
    assert here == {"runs/modal-plain/loss.png": b"picture", **traces}
    lines = capsys.readouterr().out.splitlines()
    *downloaded, last = lines[1:] if verdict else lines
    assert lines[0] == verdict or not verdict
    assert last == "download the run: modal run modal_app.py::bring --out-dir plain"
    assert sorted(downloaded) == sorted(f"downloaded {Path(path)}" for path in here)


def test_report_prints_and_returns_the_same_text(capsys):
    assert housekeeping.report("a line") == "a line"
    result = {"run": "plain", "best_val_loss": None}
    assert json.loads(housekeeping.report(result)) == result
    assert capsys.readouterr().out == f"a line\n{json.dumps(result)}\n"


def test_run_is_not_brought_onto_a_file(volume, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ng.UserError, match="file cannot be created .*; give another folder"):
        bring(volume, "modern", to=str(tmp_path / "file"))
