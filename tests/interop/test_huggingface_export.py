"""Exports in the format of Hugging Face, compared with transformers itself."""

import json
from pathlib import Path

import gpt2_folder
import pytest
import torch
from gpt2_folder import NANOGPTS, SHAPE, SHORT, logits_of, start_from
from safetensors.torch import load_file

import nanogpt_lite as ng
from nanogpt_lite.interop import conversion

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
gpt2 = gpt2_folder.gpt2  # a fixture


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True},
        {"tied": False},
        {"tokenizer": "byte"},
        {"tokenizer": "bpe-300"},
        {"activation": "gelu_tanh", "optimizer": "muon"},
    ],
)
def test_transformers_loads_an_exported_model_with_equal_logits_and_ids(text_file, options):
    text_file.write_text(text_file.read_text() + "ä 天\t🙂  \r\n" * 20, encoding="utf-8")
    run = ng.train("bottles.txt", **{**NANOGPTS, "dropout": 0.1, **options})
    folder = conversion.to_huggingface(run, "exported")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, tokenizer = ng.load(run, device="cpu")
    prompt = "9 green  ä天\t🙂\n"
    ids = tokenizer.encode(prompt).tolist()
    assert their_tokenizer(prompt)["input_ids"] == ids
    assert their_tokenizer.decode(ids) == prompt
    ids = tokenizer.encode("9 green").tolist()[:9]
    torch.testing.assert_close(logits_of(model, ids), logits_of(theirs, ids), atol=1e-5, rtol=1e-5)
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text).tolist() == ids
    drawn = theirs.generate(torch.tensor([ids]), max_new_tokens=7, do_sample=False, pad_token_id=0)[0].tolist()
    ours = ng.sample((model, tokenizer), start=text, temperature=0.0, max_new_tokens=7, threads=1)[0]
    assert tokenizer.decode(drawn) == ours
    assert (theirs.config.resid_pdrop, theirs.config.attn_pdrop, theirs.config.embd_pdrop) == (0.1, 0.1, 0.1)
    card = (folder / "README.md").read_text()
    assert json.loads((run.out_dir / "config.json").read_text())["dataset"]["sha256"] in card
    assert (folder / "loss.png").stat().st_size > 1000
    assert "![loss curves](loss.png)" in card


def test_a_network_that_transformers_lacks_is_not_exported(text_file):
    run = ng.train("bottles.txt", preset="modern-cpu", **SHORT, **SHAPE)
    with pytest.raises(
        ng.UserError, match=r"rotary, qk_norm=True, ngram=4, ngram_expert=8, activation=relu2; .* `preset="
    ):
        conversion.to_huggingface(run, "exported")
    assert not Path("exported").exists()


def test_a_tokenizer_that_transformers_lacks_is_not_exported(text_file, monkeypatch):
    run = ng.train("bottles.txt", **NANOGPTS, tokenizer="byte")
    monkeypatch.setattr("nanogpt_lite.interop.huggingface.ByteTokenizer", ng.CharTokenizer)  # as if it were a new one
    with pytest.raises(ng.UserError, match="transformers has no tokenizer like byte; train with `tokenizer='char'`"):
        conversion.to_huggingface(run, "exported")
    assert not Path("exported").exists()


def test_an_exported_character_tokenizer_is_refused_on_import(text_file):
    folder = conversion.to_huggingface(ng.train("bottles.txt", **NANOGPTS), "exported")
    with pytest.raises(ng.UserError, match="its model is not BPE"):
        start_from(str(folder))


def test_export_then_import_gives_the_same_weights(text_file):
    run = ng.train("bottles.txt", **{**NANOGPTS, "bias": True, "tokenizer": "bpe-300"})
    folder = conversion.to_huggingface(run, "exported")
    back = start_from(str(folder))
    before, after = (load_file(conversion.export_weights(one)) for one in (run, back))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(tensor, after[name], atol=1e-6, rtol=0)
