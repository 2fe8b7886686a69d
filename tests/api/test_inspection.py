"""`ng.inspect` and `nanogpt-lite inspect`, on a trained run."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from documentation import ROOT, code_blocks
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.cli.main import main

DOCS_FOLDER = ROOT / "docs"

READ = ["inspect", "--text", "9 green"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_run_and_its_loaded_network_are_read_alike_and_the_network_stays_as_it_is(trained):
    model, tokenizer = ng.load(trained)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    readings = [ng.inspect(run, "9 green bottles") for run in (trained, trained.out_dir, (model, tokenizer))]
    for reading in readings:
        assert isinstance(reading, ng.Reading)
        assert reading.text == "9 green bottles"
        assert torch.equal(reading.next_ids, readings[0].next_ids)
        assert torch.equal(reading.attention, readings[0].attention)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_mean_surprise_is_the_loss_of_the_text(trained):
    model, tokenizer = ng.load(trained)
    ids = torch.from_numpy(tokenizer.encode("9 green bottles").astype("int64"))[None]
    with torch.inference_mode():
        loss = model(ids[:, :-1], ids[:, 1:])[1]
    assert ng.inspect(trained, "9 green bottles").mean_surprise == pytest.approx(loss.item(), rel=1e-5)


def test_options_are_those_of_loading_and_of_the_filters(trained):
    reading = ng.inspect(trained, "9 green", checkpoint="last", temperature=0.0, top=3, dtype="bfloat16")
    assert reading.next_ids.shape == (7, 3)
    assert reading.next_probabilities["min_p"].tolist() == [[1.0, 0.0, 0.0]] * 7
    with pytest.raises(ng.UserError, match="`top=0` is an invalid value"):
        ng.inspect(trained, "9", top=0)
    misspelt: dict[str, Any] = {"temprature": 1}
    with pytest.raises(ng.UserError, match="unknown option 'temprature'; did you mean temperature"):
        ng.inspect(trained, "9", **misspelt)


def test_a_text_that_cannot_be_read_is_an_error_of_the_user(trained, tmp_path):
    with pytest.raises(ng.UserError, match="`text` is empty"):
        ng.inspect(trained, "")
    with pytest.raises(ng.UserError, match="text .*'é'"):
        ng.inspect(trained, "9 é")
    (tmp_path / "note.txt").write_text("9 green")
    assert ng.inspect(trained, "FILE:note.txt").text == "9 green"
    with pytest.raises(ng.UserError, match=r"the text file 'no\.txt' cannot be read"):
        ng.inspect(trained, "FILE:no.txt")


def test_a_single_token_has_no_surprise_and_a_layer_must_exist(trained):
    assert repr(ng.inspect(trained, "9")) == "<Reading of 1 token, which has no surprise>"
    pytest.importorskip("matplotlib", reason="needs matplotlib (the extra plot)")
    for layer in (1, -1):
        with pytest.raises(ng.UserError, match=f"there is no layer {layer}; give 0 to 0"):
            ng.inspect(trained, "9 green").plot_attention(layer)


def test_the_command_prints_a_table_where_there_is_no_terminal(trained, capsys):
    assert main(READ) == 0
    out, err = capsys.readouterr()
    lines, reading = out.splitlines(), ng.inspect(trained, "9 green")
    assert len(lines) == 8
    assert [float(line.split()[0]) for line in lines[2:]] == [
        round(value, 2) for value in reading.surprise[1:].tolist()
    ]
    assert repr(reading) in err


def test_the_command_prints_colours_on_a_terminal_but_not_against_the_user(trained, monkeypatch):
    def shown(*arguments):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main([*READ, *arguments]) == 0
        return terminal.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = shown()
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).startswith("9 green\nsurprise in nats:")
    assert "\x1b[" in coloured
    assert "expected" in shown("--table")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in shown()


def test_the_command_prints_json(trained, capsys):
    assert main([*READ, "--json", "--top", "2"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == ng.inspect(trained, "9 green", top=2).to_dict()


def test_the_command_needs_a_text(trained, capsys):
    assert main(["inspect"]) == 2
    assert "what to read? give a text: --text 'To be'" in capsys.readouterr().err


def test_the_python_of_its_page_runs(text_file, capsys):
    Path("notes.txt").write_text("To be, or not to be, that is the question.\n" * 40, encoding="utf-8")
    ng.train("notes.txt", **TINY, out_dir="runs/notes")
    (code,) = code_blocks(DOCS_FOLDER / "inspect.md", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    reading = ng.inspect("runs/notes", "To be, or not to be")
    assert capsys.readouterr().out.startswith(f"{reading.mean_surprise} e ")
