"""Token ids that have not changed are not read again, and those that have are checked.

The oracle: files whose content is replaced behind the program's back, with their size and time of modification kept. A
program that accepts them has not read them. A program that refuses them, or prepares them anew, has.
"""

import json
import shutil
from pathlib import Path

import book_starts
import numpy as np
import pytest
from book_data import (
    LONG_AGO,
    TEXT,
    change_token,
    downgrade,
    replace_unnoticed,
    set_time,
)
from book_starts import BINS, NOT_THE_TEXT, STARTS, start_training, text_of

import nanogpt_lite as ng
from nanogpt_lite.cli.main import main
from nanogpt_lite.data.preparation import open_or_prepare, prepare
from nanogpt_lite.interop import conversion

book, checked = book_starts.book, book_starts.checked  # fixtures


@pytest.mark.parametrize("name", BINS)
def test_token_ids_that_have_not_changed_are_not_read(checked, name):
    start_training()
    replace_unnoticed(checked / name, change_token((checked / name).read_bytes()))
    for start in STARTS:
        start()


def test_exported_token_ids_are_read_and_checked(checked):
    run = ng.train("book.txt", preset="cpu", max_iters=1, device="cpu", block_size=8, n_layer=1)
    replace_unnoticed(checked / "train.bin", change_token((checked / "train.bin").read_bytes()))
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        conversion.to_nanogpt(run, "there", dataset=True)
    assert not Path("there").exists()


@pytest.mark.parametrize("start", STARTS)
def test_token_ids_that_seem_unchanged_are_read_on_request(checked, start):
    start_training()
    for name in BINS:
        content = (checked / name).read_bytes()
        replace_unnoticed(checked / name, change_token(content))
        with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
            start(verify=True)
        for dataset in ("book.txt", "data/book"):
            with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
                ng.prepare(dataset)
            assert main(["prepare", "--dataset", dataset]) == 2
        replace_unnoticed(checked / name, content)
    start(verify=True)


def test_each_command_has_the_switch(checked, capsys):
    options = "--block_size 8 --n_layer 1 --n_head 1 --n_embd 8 --ngram 1 --batch_size 2 --max_iters 1 --device cpu"
    assert main(f"train --dataset book.txt --out_dir run {options} --verify".split()) == 0
    path = checked / "train.bin"
    replace_unnoticed(path, change_token(path.read_bytes()))
    for words in (
        f"train --dataset book.txt --out_dir other {options}",
        "train --out_dir run --init_from resume --max_iters 2",
        "eval --out_dir run",
        f"run --dataset book.txt --out_dir third --max_new_tokens 3 {options}",
    ):
        capsys.readouterr()
        assert main([*words.split(), "--verify"]) == 2, words
        assert NOT_THE_TEXT in capsys.readouterr().err
        assert main(words.split()) == 0, words


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("modified_at", [LONG_AGO - 1, LONG_AGO + 1])
def test_token_ids_with_another_time_are_read(checked, start, modified_at):
    start_training()
    for name in BINS:
        path = checked / name
        content = path.read_bytes()
        path.write_bytes(change_token(content))
        set_time(path, ns=modified_at)
        with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
            start()
        path.write_bytes(content)
        set_time(path, ns=modified_at)
    start()


def test_token_ids_changed_right_after_they_were_written_are_read(book):
    for number in range(20):
        folder = book.parent / f"data-{number}"
        path = prepare(book, out_dir=folder).path / BINS[number % 2]
        path.write_bytes(change_token(path.read_bytes()))
        with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
            open_or_prepare(book, out_dir=folder)


@pytest.mark.parametrize("copy_function", [shutil.copy2, shutil.copyfile], ids=["with the times", "without"])
def test_copied_folder_is_checked_once(checked, copy_function):
    copy = Path("copy")
    shutil.copytree(checked, copy, copy_function=copy_function)
    path = copy / "train.bin"
    content = path.read_bytes()
    replace_unnoticed(path, change_token(content))
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        open_or_prepare(copy)
    replace_unnoticed(path, content)
    set_time(*(copy / name for name in BINS))
    assert text_of(open_or_prepare(copy)) == TEXT
    replace_unnoticed(path, change_token(content))
    open_or_prepare(copy)  # no error: it is not read again


@pytest.mark.parametrize("change", ["chars", "missing"])
def test_changed_tokenizer_is_noticed_without_reading_the_token_ids(checked, change):
    path = checked / "tokenizer.json"
    content = json.loads(path.read_text())
    content["chars"] = content["chars"][::-1] if change == "chars" else content["chars"][:-1]
    replaced = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(replaced)
    set_time(path)
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        open_or_prepare(checked)


@pytest.mark.parametrize(
    ("key", "value"),
    [("sha256", "0" * 64), ("distinct_characters", 3), ("source", "x"), ("checksums", {"train.bin": ""})],
)
def test_changed_manifest_is_refused(checked, key, value):
    path = checked / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ng.UserError, match="is incomplete or damaged"):
        open_or_prepare(checked)


@pytest.mark.parametrize("id_", [len(set(TEXT)), 65535])
@pytest.mark.parametrize("start", STARTS)
def test_ids_outside_the_vocabulary_are_an_error_in_files_that_seem_unchanged(checked, id_, start):
    start_training()
    for name in BINS:
        replace_unnoticed(checked / name, np.full((checked / name).stat().st_size // 2, id_, "<u2").tobytes())
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        start()


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_data_of_version_0_1_is_checked_once(book, tokenizer):
    folder = prepare(book, tokenizer=tokenizer).path
    downgrade(folder)
    manifest, path = (folder / "manifest.json").read_bytes(), folder / "train.bin"
    content = path.read_bytes()
    path.write_bytes(change_token(content))
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        open_or_prepare(book, tokenizer=tokenizer)
    path.write_bytes(content)
    set_time(*(folder / name for name in BINS))
    assert text_of(open_or_prepare(book, tokenizer=tokenizer)) == TEXT
    replace_unnoticed(path, change_token(content))
    open_or_prepare(book, tokenizer=tokenizer)  # no error: nothing is read again
    with pytest.raises(ng.UserError, match=NOT_THE_TEXT):
        prepare(folder)
    assert (folder / "manifest.json").read_bytes() == manifest
