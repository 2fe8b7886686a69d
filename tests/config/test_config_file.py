"""Options from a JSON file."""

import json

import pytest

from nanogpt_lite.config.config_file import read_config_file
from nanogpt_lite.errors import UserError


@pytest.mark.parametrize("form", [{"n_layer": 2}, {"config": {"n_layer": 2}, "versions": {"torch": "2.9"}}])
def test_read_config_file(tmp_path, form):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(form), encoding="utf-8")
    assert read_config_file(path) == read_config_file(str(path)) == {"n_layer": 2}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"n_layer = 2", b"[1]", b"null", b'"text"', b'{"config": [1]}', b"\xff\xfe{}", b"[" * 100_000],
)
def test_config_file_without_options_is_refused(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="JSON object") as caught:
        read_config_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_missing_config_file_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot be read"):
        read_config_file(tmp_path / name)
