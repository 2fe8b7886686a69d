"""benchmarks/any_text.py: its goals, settings and baselines, and a run of it all with tiny networks."""

import bz2
import hashlib
import json
import lzma
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.data import download, sources

FOLDER = Path(__file__).parents[1] / "benchmarks"
LIGHT = {"dropout": 0.0, "ngram_dropout": 0.4, "weight_decay": 0.2}
LENGTH = {"max_iters": 840, "lr_decay_iters": 840, "eval_interval": 210}
DEFAULT = TrainConfig.from_dict({**ng.PRESETS["modern-cpu"], **LIGHT, **LENGTH}).stored()


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def result(nats, *, seconds=10.0, load=0.0, tokens_per_character=1):
    """What the benchmark stores of a training, with a loss in nats per token."""
    losses = {"nats_per_token": nats, "nats_per_character": nats * tokens_per_character}
    return {**losses, "last_nats_per_token": nats, "seconds": seconds, "other_load": load, "commit": "c"}


def row(default, **parts):
    facts = {"name": "t", "kind": "prose", "script": "Latin", "tokenizer": "char", "characters": 250_000}
    return {**facts, "bytes": 250_000, "train_tokens": 225_000, "val_tokens": 25_000, "default": default, **parts}


def eight(*nats):
    return {"commit": "c", "results": {f"setting {number}": result(loss) for number, loss in enumerate(nats)}}


@pytest.mark.parametrize(
    ("parts", "goal", "met"),
    [
        ({"nanogpt": result(1.6)}, "nanogpt", True),
        ({"nanogpt": result(1.5)}, "nanogpt", False),
        ({"nanogpt": result(1.6, seconds=9)}, "nanogpt", False),
        ({"settings": eight(1.6, 1.48)}, "settings", True),
        ({"settings": eight(1.6, 1.46)}, "settings", False),
        ({"baselines": {"5-gram": result(1.6), "lzma": result(1.7), "bz2": result(1.55)}}, "baselines", True),
        ({"baselines": {"5-gram": result(1.6), "lzma": result(1.4), "bz2": result(1.7)}}, "baselines", False),
        ({"baselines": {"5-gram": result(1.4), "lzma": result(1.6), "bz2": result(1.7)}}, "baselines", False),
        ({"baselines": {"5-gram": result(1.4)}, "bytes": 200_000}, "baselines", None),
        ({}, "nanogpt", None),
        ({"nanogpt": result(1.6, seconds=20, load=0.5)}, "nanogpt", None),
        ({"nanogpt": result(1.4, seconds=20, load=0.5)}, "nanogpt", False),
    ],
)
def test_goals_of_a_text(parts, goal, met):
    from any_text_table import goals_met

    assert goals_met(row(result(1.5), **parts)) == {"nanogpt": None, "settings": None, "baselines": None, goal: met}


def test_distance_to_the_best_setting_is_per_token():
    from any_text_table import above_best_setting, goals_met

    measured = row(result(4.5, tokens_per_character=0.3), settings=eight(4.46))
    assert above_best_setting(measured) == pytest.approx(0.04)  # it is 0.012 per character
    assert goals_met(measured)["settings"] is False


@pytest.mark.parametrize(
    ("losses", "last", "seconds", "met"),
    [
        ([1.56], 1.58, 30, True),
        ([1.58], 1.58, 30, False),
        ([1.56], 1.6, 30, False),
        ([1.56], 1.58, 31, False),
        ([1.56, 1.6], 1.6, 30, False),
    ],
)
def test_goals_of_the_beginning_of_shakespeare(losses, last, seconds, met):
    from any_text_table import SPECIAL

    runs = [{**result(loss, seconds=seconds), "last_nats_per_token": last} for loss in losses]
    assert SPECIAL[0].met(runs) is met


@pytest.mark.parametrize(
    ("nanogpt_seconds", "met"), [(None, None), (30, True), (29, False)], ids=["not measured", "as long", "longer"]
)
def test_a_row_that_may_take_no_longer_than_nanogpt_needs_its_time(nanogpt_seconds, met):
    from any_text_table import SPECIAL

    nanogpt = nanogpt_seconds and result(1.9, seconds=nanogpt_seconds)
    runs = [{**result(1.4, seconds=seconds), "last_nats_per_token": 1.4} for seconds in (20, 30)]
    assert SPECIAL[1].met(runs, nanogpt) is met


@pytest.mark.parametrize(("loss", "met"), [(1.56, None), (1.58, False)], ids=["depends on the time", "too high"])
def test_a_time_that_was_disturbed_decides_nothing(loss, met):
    from any_text_table import SPECIAL

    assert SPECIAL[0].met([result(loss, load=0.5)]) is met
    assert SPECIAL[1].met([result(1.4)], result(1.9, load=0.5)) is None


def test_the_network_alone_is_counted_against_nanogpt_and_the_5_gram_model():
    from any_text_table import alone_lines

    def measured(alone):
        default = {**result(1.4), "network_nats_per_token": alone}
        return row(default, nanogpt=result(1.6), baselines={"5-gram": result(1.5), "lzma": result(1.9)})

    assert alone_lines([measured(1.45), measured(1.55), measured(1.65), row(result(1.4))]) == [
        "- the default's network alone is better than nanoGPT: 2 of 3 texts",
        "- the default's network alone is better than the 5-gram model: 1 of 3 texts",
    ]


@pytest.mark.parametrize(("loss", "seconds", "better"), [(1.5, 20, True), (1.5, 21, False), (1.6, 19, False)])
def test_a_limited_training_is_better_only_if_it_took_no_longer(loss, seconds, better):
    from any_text_table import is_better_in_nanogpt_time

    limited = result(loss, seconds=seconds)
    measured = row(result(1.4, seconds=30), nanogpt=result(1.55, seconds=20), limited=limited)
    assert is_better_in_nanogpt_time(measured) is better


def test_tables_show_each_part_and_count_the_goals():
    from any_text_table import SPECIAL, markdown
    from table import describe_environment

    baselines = {"5-gram": result(1.7), "lzma": result(1.9), "bz2": result(1.8)}
    parts = {"nanogpt": result(1.75, seconds=20, load=0.5), "settings": eight(1.6, 1.45), "baselines": baselines}
    slow = row(result(1.5, seconds=30), nanogpt=result(1.55, seconds=20), limited=result(1.6, seconds=19))
    mixture = {**result(1.5), "network_nats_per_token": 1.6}
    rows = [row(mixture, **parts), {**row(result(2.5)), "name": "small", "bytes": 50_000}, {**slow, "name": "u"}]
    special = {
        SPECIAL[0].name: {"commit": "d", "runs": [result(1.56)]},
        SPECIAL[1].name: {"commit": "d", "runs": [result(1.4, load=0.5)], "nanogpt": result(1.9)},
    }
    text = markdown({**describe_environment("python x.py"), "rows": rows, "special": special})
    numbers = "| 1.5000 | 1.6000 | 10.0 | 1.7500 | 20.0 | 0.50 |  |  | 1.4500 | setting 1 | +0.0500 | missed |"
    numbers += " 1.7000 | 1.8000 |"
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[1].startswith("| small | prose | Latin | char | 250,000 | 250,000 | 2.5000 |  | 10.0 |  |")
    assert lines[2] == f"| t | prose | Latin | char | 250,000 | 250,000 {numbers} met |"
    assert "1.5000 |  | 30.0 | 1.5500 | 20.0 | 1.50 | missed | 1.6000 |" in lines[3]
    assert "goal 1, better than nanoGPT, in no more time: 0 of 1 texts" in text
    assert "In nanoGPT's time, the default is better than nanoGPT on 0 of 1 texts. What is limited took 0.95 of" in text
    assert "the best of eight settings: 0 of 1 texts" in text
    assert "A setting took 1.00 to 1.00 of the default's time, where no other process ran meanwhile." in text
    assert "Other processes ran while these were timed: t; Shakespeare." in text
    assert "| 1 | 1.5600 | 1.5600 | 10.0 |  |  | best ≤ 1.57, last ≤ best + 0.03, ≤ 30 s | met |" in text
    assert "| 1 | 1.4000 | 1.4000 | 10.0 | 1.9000 | 10.0 | best ≤ 1.455, in nanoGPT's time |  |" in text
    assert "Commits of nanogpt_lite: c, d." in text


def test_the_loss_of_the_network_alone_is_shown_per_character():
    from any_text_table import network_loss

    assert network_loss({**result(3.0, tokens_per_character=0.5), "network_nats_per_token": 3.2}) == pytest.approx(1.6)
    assert network_loss(result(3.0)) is None


def test_settings_are_eight_valid_configs():
    from settings import SETTINGS, changed_options, length_options

    configs = []
    for name in SETTINGS:
        changed = changed_options(name, DEFAULT)
        length = length_options(name, DEFAULT, steps=840, step_time=1.0)
        configs.append(TrainConfig.from_dict({**DEFAULT, **changed, **length}))
    assert len(set(configs)) == 8
    assert configs.count(TrainConfig.from_dict(DEFAULT)) == 1


@pytest.mark.parametrize(
    ("name", "step_time", "steps", "interval"),
    [
        ("light, all the time", 1.0, 840, 210),
        ("light, half the time", 1.0, 420, 105),
        ("light, larger network", 1.6, 525, 131),
        ("strong, half the time", 1.05, 400, 100),
        ("strong, all the time", 2000.0, 1, 1),
    ],
)
def test_steps_of_a_setting_fit_into_the_time_of_the_default(name, step_time, steps, interval):
    from settings import length_options

    length = length_options(name, DEFAULT, steps=840, step_time=step_time)
    assert length == {"max_iters": steps, "lr_decay_iters": steps, "eval_interval": interval}


def test_step_time_is_measured_where_a_step_differs(tmp_path, monkeypatch):
    import settings

    calls = []

    def step_times(runs, *, steps, warm_up):
        calls.append(len(runs))
        return [0.1, 0.1631]

    monkeypatch.setattr(settings, "step_times", step_times)
    data: Any = None  # it is for `ng.training` alone
    timer = settings.StepTimer(data, tmp_path / "config.json", tmp_path)
    monkeypatch.setattr(ng, "training", lambda *_, **__: iter(()))
    assert timer.relative_time({"learning_rate": 0.03, "weight_decay": 0.5}) == 1.0
    assert timer.relative_time({"dropout": 0.2, "learning_rate": 0.03}) == 1.65
    assert timer.relative_time({"dropout": 0.2}) == 1.65
    assert timer.relative_time({"dropout": 0.2, "n_layer": 4}) == 1.65
    assert calls == [2, 2]


def test_val_text_and_losses_are_those_of_the_val_split(tmp_path):
    from baselines import split_text
    from parts import prepare_text

    text = "Ещё одна строка. ☃\n" * 61
    prepared = prepare_text(text, "byte", tmp_path, 1)
    val = prepared.harness.dataset.tokenizer.decode(prepared.harness.dataset.val)
    assert split_text(text) == (text[: -len(val)], val)
    losses = prepared.losses(0.5)
    nats = 0.5 * len(val.encode())
    assert losses["nats_per_token"] == 0.5
    assert losses["nats_per_character"] == pytest.approx(nats / len(val))
    assert losses["bits_per_byte"] == pytest.approx(0.5 / math.log(2))


@pytest.mark.parametrize("name", ["lzma", "bz2"])
def test_compressor_is_charged_for_what_the_val_text_adds(name):
    from baselines import COMPRESSORS, compressed_nats, split_text

    generator = random.Random(0)
    text = "".join(generator.choices("abcdefgh", k=20_000))
    nats = compressed_nats(text, COMPRESSORS[name])
    assert nats == pytest.approx(2000 * math.log(8), rel=0.1)  # each character is one of eight
    if name == "lzma":  # it uses that the val text is in the train text
        train = split_text(text)[0]
        assert compressed_nats(train + train[:2000], COMPRESSORS[name]) < 0.05 * nats


@pytest.mark.parametrize(("name", "plain"), [("lzma", lzma.compress), ("bz2", bz2.compress)])
def test_compressed_text_can_be_decompressed(name, plain):
    from baselines import COMPRESSORS, MIN_DICTIONARY

    content = b"all is well that ends well\n" * 1000
    packed = COMPRESSORS[name](content)
    if name == "bz2":
        assert bz2.decompress(packed) == content
    else:
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": MIN_DICTIONARY}]
        assert lzma.decompress(packed, lzma.FORMAT_RAW, filters=filters) == content
    assert len(packed) <= len(plain(content))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--nanogpt is missing"),
        (["--only", "default,nonsense"], "unknown part for --only 'nonsense'"),
        (["--only", "default", "--threads", "-1"], "--threads is -1"),
        (["--only", "default", "--folder", "nowhere"], "there is no nowhere/texts.json; run python"),
        (["--only", "default", "--texts", "a,c"], "'c', which is not in .* give some of a,b"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(arguments, message, tmp_path, monkeypatch, capsys):
    import any_text

    (tmp_path / "texts").mkdir()
    texts = {"texts": [{"name": name, "split": "test"} for name in "ab"]}
    (tmp_path / "texts/texts.json").write_text(json.dumps(texts), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x", *arguments, "--out", str(tmp_path / "out")])
    assert any_text.main() == 2
    assert re.search(message, capsys.readouterr().err.replace("\\", "/"))


@pytest.mark.parametrize(
    ("names", "option"), [("test", []), ("tuning", ["--split", "tuning"]), ("all", ["--split", "all"])]
)
def test_command_names_the_split_of_a_report(names, option):
    from any_text import texts_option
    from texts import TEXTS, split

    rows = [{"name": name} for name, half in split(TEXTS).items() if names in ("all", half)]
    assert texts_option(rows) == option
    assert texts_option(rows[:1]) == ["--texts", rows[0]["name"]]


def test_results_of_another_machine_are_not_continued(tmp_path, monkeypatch, capsys):
    import any_text
    from table import describe_environment

    saved = describe_environment("x")
    arguments = ["x", "--only", "default", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    for change in ({"machine": {"cpu": "another"}}, {"versions": {**saved["versions"], "torch": "1.0"}}):
        (tmp_path / "out.json").write_text(json.dumps({**saved, **change}), encoding="utf-8")
        assert any_text.main() == 2
    machine, torch = capsys.readouterr().err.splitlines()
    assert "another machine or number of threads" in machine
    assert "another version of torch; give another --out" in torch


NANOGPT = {  # a program with nanoGPT's files, whose network gives each token the same probability
    "model.py": """
import dataclasses, torch
@dataclasses.dataclass
class GPTConfig:
    vocab_size: int
    block_size: int
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.logits = config, torch.nn.Parameter(torch.zeros(config.vocab_size))
    def forward(self, x, y):
        logits = self.logits.expand(*x.shape, -1)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
""",
    "train.py": """
import os, pickle, sys, torch, model
options = dict(word[2:].split("=") for word in sys.argv[2:])
with open(f"data/{options['dataset']}/meta.pkl", "rb") as file:
    size = {"vocab_size": pickle.load(file)["vocab_size"], "block_size": int(options["block_size"])}
weights = model.GPT(model.GPTConfig(**size)).state_dict()
os.makedirs(options["out_dir"])
torch.save({"model_args": size, "model": weights}, f"{options['out_dir']}/ckpt.pt")
""",
}


@pytest.fixture
def clone(tmp_path):
    """A folder with the files that the benchmarks need of a clone of nanoGPT."""
    from harness import NEEDED

    for name in NEEDED:
        (tmp_path / "nanoGPT" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nanoGPT" / name).write_text(NANOGPT.get(name, ""), encoding="utf-8")
    return tmp_path / "nanoGPT"


@pytest.fixture
def texts(tmp_path):
    """A folder as of texts.py, with one text of 12,800 characters."""
    content = "Ещё одна строка, ☃\nand one more\n" * 400
    data = content.encode()
    facts: dict[str, Any] = {"name": "lines", "kind": "prose", "script": "Cyrillic", "size": "small"}
    facts |= {
        "tokenizer": "char",
        "split": "test",
        "package": "made-up",
        "bytes": len(data),
        "characters": len(content),
    }
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/lines.txt").write_bytes(data)
    listed = {"texts": [{**facts, "sha256": hashlib.sha256(data).hexdigest()}]}
    (tmp_path / "texts/texts.json").write_text(json.dumps(listed), encoding="utf-8")
    return tmp_path / "texts"


@pytest.mark.slow
@pytest.mark.posix("benchmarks/launch.py uses wait4")
def test_any_text_from_end_to_end(tmp_path, monkeypatch, clone, texts, capsys):
    import any_text
    import parts
    from any_text_table import compared_losses, goals_met
    from settings import SETTINGS

    kept = ("light, all the time", "strong, half the time", "strong, larger network")
    for name in SETTINGS.keys() - set(kept):
        monkeypatch.delitem(SETTINGS, name)
    options = {**TINY, **LIGHT, "ngram": 2, "ngram_rows": 64}
    del options["threads"]  # it is given by --threads
    monkeypatch.setattr(parts, "DEFAULT", options)
    for module in ("any_text", "any_text_table"):
        monkeypatch.setattr(sys.modules[module], "takes_longer", lambda _row: True)
    out = tmp_path / "results" / "any_text"
    arguments = ["x", "--folder", str(texts), "--nanogpt", str(clone), "--threads", "1", "--out", str(out)]

    def measure(*more):
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        assert any_text.main() == 0
        return json.loads(out.with_name("any_text.json").read_text(encoding="utf-8")), capsys.readouterr().err

    report, _ = measure()
    assert report["machine"]["threads"] == 1
    assert report["command"].endswith("--folder texts --nanogpt nanoGPT --texts lines --threads 1")
    (measured,) = report["rows"]
    assert (measured["train_tokens"], measured["val_tokens"], measured["val_characters"]) == (11_520, 1280, 1280)
    assert measured["default"]["steps"] == 20
    assert [step for step, _ in measured["default"]["evaluations"]] == [10, 20]
    assert measured["default"]["recipe"]["n_embd"] == 16
    assert 1 <= measured["limited"]["steps"] <= 20
    assert measured["nanogpt"]["nats_per_character"] == pytest.approx(math.log(measured["vocab_size"]), rel=1e-5)
    settings = measured["settings"]["results"]
    assert list(settings) == list(kept)
    assert settings[kept[0]]["evaluations"] == measured["default"]["evaluations"]  # it is the default itself
    assert settings[kept[1]]["steps"] == int(10 / settings[kept[1]]["step_time"])
    assert settings[kept[2]]["changed"]["n_layer"] == 2
    assert list(measured["baselines"]) == ["5-gram", "lzma", "bz2"]
    assert measured["baselines"]["lzma"]["nats_per_character"] < 0.1  # it is one line again and again
    assert list(compared_losses(measured)) == ["nanoGPT", "best of eight", "5-gram", "compressor"]
    assert goals_met(measured)["baselines"] is None  # the text is short
    assert "| lines | prose | Cyrillic | char | 12,800 | 12,800 |" in out.with_name("any_text.md").read_text("utf-8")
    assert out.with_name("any_text.png").read_bytes().startswith(b"\x89PNG")

    again, log = measure()
    assert again == report
    assert log.count("measured before") == 5
    parts.DEFAULT["max_iters"] = 10  # another recipe: what depends on it is measured again
    changed, log = measure("--only", "default,nanogpt")
    assert log.count("measured before") == 1
    assert changed["rows"][0]["default"]["steps"] == 10
    _, log = measure("--only", "settings,baselines")
    assert "strong, half the time" in log


@pytest.mark.slow
@pytest.mark.posix("benchmarks/launch.py uses wait4")
def test_shakespeare_is_measured_once_with_each_seed(tmp_path, monkeypatch, capsys):
    import any_text
    import parts
    from any_text_table import Special

    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/shakespeare.txt").write_text("to be or not to be\n" * 100, encoding="utf-8")
    monkeypatch.setenv("NANOGPT_LITE_CACHE", str(tmp_path / "cache"))
    resource = download.Resource("http://127.0.0.1:1/input.txt", "shakespeare.txt")
    monkeypatch.setitem(sources.RESOURCES, "shakespeare_char", resource)
    monkeypatch.setattr(parts, "DEFAULT", {**TINY, "max_iters": 2})
    special = Special("the beginning", "shakespeare", 1000, 2, best=10.0)
    for module in ("any_text", "any_text_table"):
        monkeypatch.setattr(sys.modules[module], "SPECIAL", (special,))
    out = tmp_path / "any_text"
    monkeypatch.setattr(sys, "argv", ["x", "--special", "--threads", "1", "--out", str(out)])
    for log in ("the beginning\n", "the beginning: measured before\n"):
        assert any_text.main() == 0
        assert log in capsys.readouterr().err
    report = json.loads(out.with_name("any_text.json").read_text(encoding="utf-8"))
    first, second = report["special"]["the beginning"]["runs"]
    assert first["nats_per_token"] != second["nats_per_token"]
    assert report["command"] == "python benchmarks/any_text.py --special --threads 1"
    assert "| the beginning | 2 | " in out.with_name("any_text.md").read_text(encoding="utf-8")
