"""quickstart.ipynb in a real Jupyter kernel: it runs from top to bottom, shows its outputs, can be interrupted."""

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
pytestmark = pytest.mark.filterwarnings("default")  # Jupyter's own code warns


@pytest.fixture
def notebook(text_file, monkeypatch):
    """The notebook, in a folder of its own, with a small text instead of Shakespeare's."""
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(text_file.parent / "ipython"))
    content = nbformat.read(QUICKSTART, as_version=4)
    for cell in content.cells:
        cell.source = cell.source.replace('"shakespeare_char"', '"bottles.txt"').replace(
            "ROMEO: what", "7 green bottles"
        )
        cell.source = cell.source.replace("ROMEO:", "7 green").replace(
            "max_iters=60", "max_iters=60, n_layer=1, batch_size=4"
        )
    return content


def displayed(cell, mime_type):
    """The outputs of a cell that have this MIME type."""
    return [output.data[mime_type] for output in cell.outputs if mime_type in output.get("data", {})]


def printed(cell, name="stdout"):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == name)


def test_notebook_is_committed_without_outputs():
    cells = nbformat.read(QUICKSTART, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


def test_notebook_runs_from_top_to_bottom(notebook):
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    prepared, trained, plotted, resumed, streamed, loaded = (c for c in notebook.cells if c.cell_type == "code")
    assert "train and" in displayed(prepared, "text/plain")[0]
    for cell in (trained, resumed):
        assert displayed(cell, "application/vnd.jupyter.widget-view+json")  # the progress bar
        assert "all steps are done" in printed(cell, "stderr")
        assert "\r" not in printed(cell, "stderr")
    picture = base64.b64decode(displayed(plotted, "image/png")[0])
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height) > (300, 200)
    assert printed(streamed).startswith("7 green")
    assert "torch.Size([1, 15, " in displayed(loaded, "text/plain")[0]


@pytest.mark.slow
@pytest.mark.posix("sends a signal to the kernel")
def test_interrupted_kernel_saves_a_state_that_resumes(notebook):
    """A signal while the cell trains, as the interrupt button sends it; the next cell resumes."""
    options = 'preset="cpu", device="cpu", n_layer=1, n_embd=16, n_head=1, block_size=8, batch_size=4, threads=1'
    endless = f'import nanogpt_lite as ng\nng.train("bottles.txt", {options}, out_dir="cut", max_iters=10**6)'
    resume = 'step = ng.Run("cut").metrics[-1]["step"]\nng.train(out_dir="cut", init_from="resume", max_iters=step + 3)'
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (endless, resume)]
    notebook.cells[0].metadata.tags = ["raises-exception"]
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True)

    def interrupt():
        while not Path("cut/metrics.jsonl").exists() or Path("cut/metrics.jsonl").stat().st_size < 2000:
            time.sleep(0.02)
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
