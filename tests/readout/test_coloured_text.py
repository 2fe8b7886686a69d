"""A text in colours of a terminal, and as a table."""

import math
import re

import torch

from nanogpt_lite.readout.coloured_text import LEVELS, ansi_legend, as_ansi, as_html, as_table

NAN = math.nan


def without_codes(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_only_surprising_tokens_have_a_background_and_more_surprise_another_one():
    shown = as_ansi(list("abcdef"), torch.tensor([NAN, 0.1, 0.7, 1.5, 3.0, 50.0]))
    assert without_codes(shown) == "abcdef"
    assert shown.startswith("ab\x1b")
    backgrounds = re.findall(r"48;5;(\d+)m[a-f]", shown)
    assert len(set(backgrounds)) == len(backgrounds) == 4


def test_no_colour_goes_over_the_end_of_a_line():
    shown = as_ansi(["a\nb", "\n", "c"], torch.tensor([9.0, 9.0, 9.0]))
    assert without_codes(shown) == "a\nb\nc"
    for line in shown.split("\n"):
        assert line.startswith("\x1b[38") == line.endswith("\x1b[0m") == bool(line)


def test_escape_codes_in_a_text_do_not_reach_the_terminal():
    shown = as_ansi(["\x1b", "[31m", "x"], torch.tensor([NAN, 0.1, 9.0]))
    assert without_codes(shown) == "␛[31mx"


def test_the_legend_names_each_level_in_its_colour():
    legend = ansi_legend()
    for code in filter(None, LEVELS.values()):
        assert code in legend
    assert without_codes(legend) == "surprise in nats:  0 to 0.5  0.5 to 1  1 to 2  2 to 4  4 or more "


def test_html_colours_grow_with_surprise_and_stop_at_a_limit():
    opacities = re.findall(r"30, ([0-9.]+)\)", as_html(list("abcd"), torch.tensor([NAN, 1.5, 6.0, 99.0])))
    assert opacities == ["0.00", "0.25", "1.00", "1.00"]


def test_a_table_has_a_line_for_each_token():
    table = as_table(["T", "\n"], torch.tensor([NAN, 2.314]), [[], [("h", 0.5), ("\t", 0.25)]])
    assert table.split("\n") == [
        "surprise  token         expected",
        "          'T'",
        "    2.31  '\\n'          'h' 0.50, '\\t' 0.25",
    ]


def test_the_surprise_of_a_character_of_several_tokens_is_the_sum_of_theirs():
    tokens, surprise = ["", "", "界", "", "é", "a"], torch.tensor([NAN, 1.0, 1.25, 3.0, 0.5, 0.75])
    titles = re.findall(r'title="([0-9.]+) nats">(.)', as_html(tokens, surprise))
    assert titles == [("2.25", "界"), ("3.50", "é"), ("0.75", "a")]
    assert re.findall(r"48;5;(\d+)m", as_ansi(tokens, surprise)) == re.findall(
        r"48;5;(\d+)m", as_ansi(["界", "é", "a"], torch.tensor([2.25, 3.5, 0.75]))
    )


def test_control_characters_do_not_reach_the_terminal():
    shown = as_ansi(["a\r", "\b", "\x9b31m", "\x7f\n\tb"], torch.tensor([0.0, 0.0, 0.0, 0.0]))
    assert shown == "a\u240d\u2408\ufffd31m␡\n\tb"
