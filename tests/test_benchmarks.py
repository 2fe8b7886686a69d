"""Parts of the benchmarks: rows and targets, valid variants, the memory of another process."""

import sys
from pathlib import Path

import pytest

import nanogpt_lite as ng
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.data import download, sources

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", ["ablation", "curves", "on_gpu", "scaling", "startup", "vs_nanogpt"])
def test_each_benchmark_has_help_and_refuses_unknown_options(name, monkeypatch, capsys):
    module = __import__(name)
    for arguments, status in (["--help"], 0), (["--nonsense"], 2):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert ended.value.code == status
    assert "usage:" in capsys.readouterr().out


def test_every_ablation_variant_is_a_valid_config():
    from ablation import VARIANTS

    recipe = TrainConfig.from_dict(ng.PRESETS["modern-cpu"])
    changed = [TrainConfig.from_dict({**ng.PRESETS["modern-cpu"], **options}) for options in VARIANTS.values()]
    assert changed.count(recipe) == 1  # each but the recipe itself changes something
    assert len(set(changed)) == len(VARIANTS)


def test_every_scaling_point_is_a_valid_config():
    from scaling import AXES

    for device, preset in (("cpu", "cpu"), ("cuda", "shakespeare_char")):
        for axis, values in AXES[device].items():
            for value in values:
                options = {} if axis == "ranks" else {axis: value}
                config = TrainConfig.from_dict({**ng.PRESETS[preset], **options})
                config.require_divisible_by(value if axis == "ranks" else 1)


@pytest.mark.parametrize(
    ("unit", "target", "lite", "nanogpt", "ratio", "met"),
    [
        ("tokens/s", {"least_ratio": 8}, [3, 90, 100], [10, 10, 11], 9, True),
        ("s", {"least_ratio": 8}, [10, 20, 30], [100, 140, 150], 7, False),
        ("nats", {"most": 1.5}, [1.4, 1.5, 1.6], [2, 3, 4], 2, True),
        ("nats", {"most": 0.001}, [0.002], [], None, False),
        ("MB", {}, [4], [8], 2, None),
    ],
)
def test_row_holds_medians_and_is_compared_with_its_target(unit, target, lite, nanogpt, ratio, met):
    from table import Row

    row = Row(part="p", name="n", unit=unit, note="", **target)
    line = row.line([{"n": value, "other": 0} for value in lite], [{"n": value} for value in nanogpt])
    assert (line["ratio"], line["met"]) == (ratio, met)


def test_table_shows_rows_targets_and_notes():
    from table import Row, describe_environment, markdown

    row = Row(part="p", name="what int8 changes", unit="nats", note="a note", most=0.001)
    text = markdown({**describe_environment("python x.py"), "rows": [row.line([{row.name: 0.0002}], [{}])]})
    assert "| what int8 changes | nats | 0.0002 |  |  | nanogpt_lite ≤ 0.001 | met |" in text
    assert "`python x.py`" in text.splitlines()[0]
    assert "- what int8 changes: a note" in text


@pytest.mark.posix("benchmarks/launch.py uses wait4")
def test_memory_is_that_of_the_launched_process(tmp_path):
    from harness import launch

    own_memory = bytearray(200_000_000)  # of this process, which must not count
    small, large = (
        launch([sys.executable, "-S", "-c", f"x = bytearray({size}); print(len(x))"], tmp_path, {}).memory
        for size in (1, 100_000_000)
    )
    assert len(own_memory) > 1e8
    assert small < 50
    assert 100 < large < 150


@pytest.mark.posix("benchmarks/launch.py uses wait4")
def test_failed_process_is_reported_with_its_last_lines(tmp_path):
    from harness import launch

    with pytest.raises(ng.ExternalError, match="ended with status 3: .*broken"):
        launch([sys.executable, "-c", "import sys; print('broken', file=sys.stderr); sys.exit(3)"], tmp_path, {})


@pytest.mark.parametrize("size", [1, 5, 40, 1000])
def test_text_of_the_startup_benchmark_has_the_length_and_varies(tmp_path, size):
    from startup import write_text

    write_text(tmp_path / "text.txt", b"to be or not to be\n", size)
    text = (tmp_path / "text.txt").read_bytes()
    assert len(text) == size
    parts = {text[start : start + 20] for start in range(0, size, 20)}
    assert len(parts) == -(-size // 20)  # no part is there twice


@pytest.mark.slow
def test_startup_from_end_to_end(tmp_path, monkeypatch):
    import startup

    cached = tmp_path / "cache/shakespeare.txt"
    cached.parent.mkdir()
    cached.write_text("to be or not to be\n" * 50)
    monkeypatch.setenv("NANOGPT_LITE_CACHE", str(cached.parent))
    resource = download.Resource("http://127.0.0.1:1/input.txt", cached.name)
    monkeypatch.setitem(sources.RESOURCES, "shakespeare_char", resource)
    out = ["--out", str(tmp_path / "table")]
    monkeypatch.setattr(sys, "argv", ["x", "--megabytes", "1", "2", "--repeats", "1", *out])
    assert startup.main() == 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:6]] == ["prepare, once", "train"]
    monkeypatch.setattr(sys, "argv", ["x", "--megabytes", "0"])
    assert startup.main() == 2


@pytest.mark.slow
def test_ablation_and_scaling_from_end_to_end(tmp_path, monkeypatch):
    import ablation
    import scaling

    (tmp_path / "my.txt").write_text("all is well that ends well\n" * 2000)
    monkeypatch.chdir(tmp_path)
    shared = ["--out", str(tmp_path / "table")]
    only = ["--only", "the recipe", "no n-grams"]
    monkeypatch.setattr(sys, "argv", ["x", "--dataset", "my.txt", "--seconds", "0.2", "--seeds", "2", *only, *shared])
    assert ablation.main() == 0
    monkeypatch.setattr(sys, "argv", ["x", *only])
    assert ablation.main() == 2  # it would replace the table of all variants
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:6]] == ["the recipe", "no n-grams"]
    monkeypatch.setattr(sys, "argv", ["x", "--only", "ranks", *shared])
    assert scaling.main() == 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split("|")[1:3] for line in lines[6:8]] == [[" ranks ", " 1 "], [" ranks ", " 2 "]]
