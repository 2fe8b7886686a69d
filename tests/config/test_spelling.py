"""The spelling of options in messages, on the command line and on Modal."""

import pytest

from nanogpt_lite.config.spelling import for_command_line, for_modal


@pytest.mark.parametrize(
    ("message", "command_line", "modal"),
    [
        ("give another `out_dir`", "give another --out_dir", "give another --out-dir"),
        ("go on (`init_from='resume'`)", "go on (--init_from resume)", "go on (--init-from resume)"),
        ("give `dataset='my text.txt'`", "give --dataset 'my text.txt'", "give --dataset 'my text.txt'"),
        ("replace it: `overwrite=True`", "replace it: --overwrite", "replace it: --overwrite"),
        ("use `compile=False`", "use --compile False", "use --compile False"),
        ("not `overwrite=False`", "not --overwrite", "not --overwrite"),
        ("try `n_embd=64`", "try --n_embd 64", "try --n-embd 64"),
        ("no option here: `Ab c`, n_embd=64", "no option here: `Ab c`, n_embd=64", "no option here: `Ab c`, n_embd=64"),
    ],
)
def test_options_in_messages_are_respelled(message, command_line, modal):
    assert for_command_line(message) == command_line
    assert for_modal(message) == modal
