"""quickstart.ipynb in a real Jupyter kernel: it runs from top to bottom, shows what it should, can be interrupted."""

import base64
import os
import shutil
import struct
import threading
import time
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
QUICKSTART = Path(__file__).parents[2] / "quickstart.ipynb"
pytestmark = pytest.mark.filterwarnings("default")  # of Jupyter's own parts


@pytest.fixture
def notebook(text_file, monkeypatch):
    """The notebook, to be run in a folder of its own, on a small text instead of Shakespeare's."""
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(text_file.parent / "ipython"))
    found = nbformat.read(QUICKSTART, as_version=4)
    for cell in found.cells:
        cell.source = cell.source.replace('"shakespeare_char"', '"bottles.txt"').replace(
            "ROMEO: what", "7 green bottles"
        )
        cell.source = cell.source.replace("ROMEO:", "7 green").replace(
            "max_iters=60", "max_iters=60, n_layer=1, batch_size=4"
        )
    return found


def shown(cell, kind):
    """What a cell has shown, of one kind."""
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def printed(cell, name="stdout"):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == name)


def test_it_is_committed_without_what_it_shows():
    cells = nbformat.read(QUICKSTART, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


def test_it_runs_from_top_to_bottom(notebook):
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    prepared, trained, plotted, longer, streamed, loaded = (c for c in notebook.cells if c.cell_type == "code")
    assert "train and" in shown(prepared, "text/plain")[0]
    for cell in (trained, longer):
        assert shown(cell, "application/vnd.jupyter.widget-view+json")  # the bar is a widget
        assert "all steps are done" in printed(cell, "stderr")
        assert "\r" not in printed(cell, "stderr")
    picture = base64.b64decode(shown(plotted, "image/png")[0])
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height) > (300, 200)
    assert printed(streamed).startswith("7 green")
    assert "torch.Size([1, 14, " in shown(loaded, "text/plain")[0]


def test_an_interrupted_kernel_leaves_a_state_to_go_on_from(notebook):
    """As the button of the notebook does: a signal while the cell trains; the next cell goes on."""
    options = 'preset="cpu", device="cpu", n_layer=1, n_embd=16, n_head=1, block_size=8, batch_size=4, threads=1'
    endless = f'import nanogpt_lite as ng\nng.train("bottles.txt", {options}, out_dir="cut", max_iters=10**6)'
    going_on = (
        'step = ng.Run("cut").metrics[-1]["step"]\nng.train(out_dir="cut", init_from="resume", max_iters=step + 3)'
    )
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (endless, going_on)]
    notebook.cells[0].metadata.tags = ["raises-exception"]
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True)

    def interrupt():
        while not Path("cut/metrics.jsonl").exists() or Path("cut/metrics.jsonl").stat().st_size < 2000:
            time.sleep(0.02)  # a file tells nobody that it grew
        os.kill(client.km.provisioner.pid, 2)

    watcher = threading.Thread(target=interrupt, daemon=True)
    watcher.start()
    client.execute()
    first, second = notebook.cells
    (error,) = (output for output in first.outputs if output.output_type == "error")
    assert error.ename == "Interrupted"
    assert "the state is saved" in error.evalue
    assert "all steps are done" in printed(second, "stderr")
    assert not [output for output in second.outputs if output.output_type == "error"]
    shutil.rmtree("cut")
