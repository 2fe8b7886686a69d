"""The tables of the benchmark are written as they arrive, and an earlier one stays until the new one is complete."""

import re

import pytest

import nanogpt_lite as ng
from nanogpt_lite.cloud.client.benchmark_tables import write_tables


def make_table(name, text):
    return {"name": name, "json": f'{{"text": "{text}"}}\n', "markdown": f"| {text} |\n"}


def contents(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_each_table_is_written_at_once_in_place_of_the_one_before(tmp_path):
    folder = tmp_path / "results"
    seen = []

    def tables():
        for name, text in (("t4-incomplete", "one"), ("t4-incomplete", "two ≥"), ("t4", "three")):
            yield make_table(name, text)
            seen.append(contents(folder))

    assert write_tables(tables(), folder) == folder / "t4.md"
    for name, text, written in zip(["t4-incomplete"] * 2 + ["t4"], ["one", "two ≥", "three"], seen, strict=True):
        assert written[f"{name}.md"] == f"| {text} |\n"
        assert written[f"{name}.json"] == f'{{"text": "{text}"}}\n'
    assert contents(folder) == {"t4.json": '{"text": "three"}\n', "t4.md": "| three |\n"}


def test_interrupted_measurement_leaves_what_was_measured_and_earlier_tables(tmp_path):
    write_tables([make_table("t4", "earlier"), make_table("l4", "of another GPU")][:1], tmp_path)
    write_tables([make_table("l4", "of another GPU")], tmp_path)
    earlier = contents(tmp_path)

    def tables():
        yield make_table("t4-incomplete", "one")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=re.escape(f"what was measured is in {tmp_path / 't4-incomplete.md'}")):
        write_tables(tables(), tmp_path)
    expected = {"t4-incomplete.json": '{"text": "one"}\n', "t4-incomplete.md": "| one |\n"}
    assert contents(tmp_path) == earlier | expected


def test_interruption_and_end_before_the_first_table_are_told(tmp_path):
    def interrupted():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt, match="nothing was measured yet"):
        write_tables(interrupted(), tmp_path / "none")
    with pytest.raises(ng.ExternalError, match=r"nothing was measured.*try again"):
        write_tables([], tmp_path / "none")
    assert not (tmp_path / "none").exists()
