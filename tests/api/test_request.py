"""What a training call asks for: precedence of options, config files, restarts by torchrun."""

import json
from pathlib import Path

import pytest
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.api import request


def test_precedence_is_preset_then_file_then_explicit(text_file):
    (text_file.parent / "options.json").write_text(json.dumps({**TINY, "max_iters": 3, "learning_rate": 5e-4}))
    run = ng.train("bottles.txt", preset="tutorial", config="options.json", max_iters=2)
    config = json.loads((run.out_dir / "config.json").read_text())["config"]
    assert config["max_iters"] == 2  # given, over the file's 3 and the preset's 1000
    assert config["learning_rate"] == 5e-4  # the file's, over the preset's 1e-3
    assert config["beta2"] == 0.99  # nobody said otherwise


def test_resume_takes_per_call_options_from_a_config_file(trained, text_file):
    ng.train("bottles.txt", **{**TINY, "max_iters": 1})  # a newer run, which is not meant
    options = {"out_dir": str(trained.out_dir), "init_from": "resume", "max_iters": 7, "max_seconds": 500}
    (text_file.parent / "options.json").write_text(json.dumps(options))
    run = ng.train(config="options.json", max_iters=22)
    assert run == trained
    config = json.loads((trained.out_dir / "config.json").read_text())["config"]
    assert (config["max_iters"], config["max_seconds"]) == (22, 500)
    with pytest.raises(ng.UserError, match="unknown preset"):
        ng.train(init_from="resume", preset="typo")  # type: ignore[arg-type]


def test_int_values_of_float_options_give_the_same_run(text_file):
    tiny = {**TINY, "max_iters": 2}
    one, other = (ng.train("bottles.txt", **{**tiny, "dropout": zero}) for zero in (0, 0.0))
    files = [(run.out_dir / "last.safetensors").read_bytes() for run in (one, other)]
    assert files[0] == files[1]


def test_unknown_options_are_errors_that_name_the_nearest(text_file):
    for call in (ng.train, ng.sample, ng.evaluate):
        with pytest.raises(ng.UserError, match=r"unknown option 'devise'; did you mean device\?"):
            call(devise="cpu")  # type: ignore[call-arg]
    with pytest.raises(ng.UserError, match="unknown preset 'cpuu'; did you mean cpu"):
        ng.train("bottles.txt", preset="cpuu")  # type: ignore[arg-type]


def test_restarted_ranks_resume_the_run_of_the_attempt_before(text_file):
    first = request.read_request("bottles.txt", "cpu", None, True, False, {"max_iters": 3})
    Path("begun").mkdir()
    assert request.request_for_restart(first, "") == first
    anew = request.request_for_restart(first, "begun")
    assert (anew.explicit["out_dir"], anew.explicit.get("init_from"), anew.preset) == ("begun", None, "cpu")
    Path("begun/step_000002.safetensors").touch()
    on = request.request_for_restart(first, "begun")
    assert (on.explicit["out_dir"], on.explicit["init_from"], on.preset) == ("begun", "resume", None)
