"""Secrets of this machine: from its environment, else from .env, which python-dotenv reads the same."""

from pathlib import Path

import pytest

import nanogpt_lite as ng
from nanogpt_lite.cloud.client.local_secrets import local_secrets

NAMES = ("WANDB_API_KEY", "HF_TOKEN")


@pytest.fixture
def dotenv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return Path(".env")


@pytest.mark.parametrize(
    "text",
    [
        "WANDB_API_KEY=abc\nHF_TOKEN=hf_x\n",
        "export WANDB_API_KEY=abc",
        "WANDB_API_KEY = abc # mine\n\n# HF_TOKEN=no\n",
        "WANDB_API_KEY='a b # c'\nHF_TOKEN=\"d e\"  # twice\n",
        "HF_TOKEN=a=b==\r\nWANDB_API_KEY=#abc\r\n",
        "\ufeffHF_TOKEN=first\nHF_TOKEN=second",
        "HF_TOKEN=\nWANDB_API_KEY=ä–ö",
        "OTHER=1\nHF_TOKENS=2\nMY_HF_TOKEN=3\nHF_TOKEN",
        "HF_TOKEN=a#b\nWANDB_API_KEY=\t x y \t",
        "",
    ],
)
def test_dotenv_is_read_as_python_dotenv_does(dotenv, text):
    dotenv_package = pytest.importorskip("dotenv")
    dotenv.write_text(text, encoding="utf-8", newline="")
    expected = dotenv_package.dotenv_values(dotenv, encoding="utf-8-sig")
    assert local_secrets(NAMES) == {name: expected.get(name) or None for name in NAMES}


def test_environment_wins_unless_it_is_empty_and_without_both_there_is_none(dotenv, monkeypatch):
    assert local_secrets(NAMES) == {"WANDB_API_KEY": None, "HF_TOKEN": None}
    dotenv.write_text("WANDB_API_KEY=file\nHF_TOKEN=file\n")
    monkeypatch.setenv("HF_TOKEN", "environment")
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert local_secrets(NAMES) == {"WANDB_API_KEY": "file", "HF_TOKEN": "environment"}


def test_dotenv_that_cannot_be_read_is_an_error(dotenv):
    dotenv.write_bytes(b"HF_TOKEN=\xff\n")
    with pytest.raises(ng.UserError, match=r"\.env cannot be read .*; write lines NAME=VALUE in UTF-8, or move it"):
        local_secrets(NAMES)
    dotenv.unlink()
    dotenv.mkdir()
    with pytest.raises(ng.UserError, match=r"\.env cannot be read"):
        local_secrets(NAMES)
