"""The reading of a text: what belongs to which token, contexts that follow each other, JSON, colours and figures."""

import json
import math
import re

import pytest
import torch
from random_gpt import EXPERT, MODERN, SMALL, random_gpt

from nanogpt_lite.config.options import InspectConfig
from nanogpt_lite.readout.expectations import STAGES
from nanogpt_lite.readout.plain_forward import forward_pass, logit_lens
from nanogpt_lite.readout.reading import Reading, read_steps
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer

CHARS = CharTokenizer("\n <>&$abcdefgh")
TEXT = "a bad <b> & a cab\nbag $5".replace("5", "h")


def reading_of(text=TEXT, options=EXPERT, tokenizer=CHARS, top=4, **filters):
    model = random_gpt(SMALL.replace(options), tokenizer.vocab_size)
    return model, read(model, tokenizer, tokenizer.encode(text), InspectConfig(**filters), top)


def read(*arguments, **options) -> Reading:
    *_, reading = read_steps(*arguments, **options)
    assert reading is not None
    return reading


def test_each_token_has_its_own_surprise_and_what_is_expected_after_it():
    model, reading = reading_of("abcdef")
    assert (reading.text, reading.tokens) == ("abcdef", list("abcdef"))
    assert math.isnan(reading.surprise[0])
    assert reading.rank[0] == -1
    with torch.inference_mode():
        p = model(reading.ids[None])[0][0].exp()
    for position in range(1, 6):
        before = p[position - 1]
        assert reading.surprise[position].item() == pytest.approx(-math.log(before[reading.ids[position]]), rel=1e-4)
        assert reading.rank[position] == (before > before[reading.ids[position]]).sum()
        alternatives = reading.expected_instead(3)[position]
        assert [token for token, _ in alternatives] == [CHARS.decode([i]) for i in before.topk(3).indices.tolist()]
        assert [value for _, value in alternatives] == pytest.approx(before.topk(3).values.tolist(), rel=1e-4)
    assert reading.expected_instead()[0] == []
    assert [row[0] for row in reading.next_tokens] == [CHARS.decode([i]) for i in p.argmax(1).tolist()]
    assert reading.mean_surprise == pytest.approx(reading.surprise[1:].mean().item())


def test_attention_and_lens_of_a_long_text_are_those_of_its_contexts():
    text = (TEXT * 3)[:50]
    model, reading = reading_of(text, MODERN)
    attention, lens = reading.attention, reading.lens
    assert attention.shape == (3, 2, 50, 50)
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 2, 50))
    assert lens.ids.shape == (4, 50, 4)
    start = 16 + 1 - 8  # the second context begins with the last half of the first one, and the token after it
    second = forward_pass(model, reading.ids[start : start + 16])
    torch.testing.assert_close(attention[:, :, 16, start : start + 16], second.attention[:, :, 7])
    assert not attention[:, :, 16, :start].any()
    assert torch.equal(lens.ids[:, 16], logit_lens(model, second.residuals, 4).ids[:, 7])
    assert reading.ngram_share is not None
    assert len(reading.ngram_share) == len(reading.surprise) == len(reading.rank) == len(reading.next_tokens) == 50


def test_a_short_text_is_one_context():
    model, reading = reading_of("abc", MODERN)
    (window,) = reading.windows
    assert window.attention is not None
    assert torch.equal(reading.attention, window.attention)
    assert torch.equal(window.attention, forward_pass(model, reading.ids).attention)


def test_attention_and_lens_are_not_kept_unless_they_are_asked_for():
    model, ids = random_gpt(SMALL, CHARS.vocab_size), CHARS.encode(TEXT * 3)
    whole, part = (read(model, CHARS, ids, InspectConfig(), 3, attention=keeps, lens=keeps) for keeps in (True, False))
    assert all(window.attention is None and window.lens is None for window in part.windows)
    assert part.to_dict() == whole.to_dict()


def test_a_reading_can_be_left_after_each_context():
    model, ids = random_gpt(SMALL, CHARS.vocab_size), CHARS.encode(TEXT * 3)
    *steps, last = read_steps(model, CHARS, ids, InspectConfig(), 3)
    assert last is not None
    assert steps == [None] * len(last.windows)
    assert len(last.windows) > 4


def test_a_single_character_has_no_surprise_but_expectations():
    _, reading = reading_of("a")
    assert math.isnan(reading.mean_surprise)
    (token,) = reading.to_dict()["tokens"]
    assert (token["surprise"], token["rank"]) == (None, None)
    assert len(token["next"]) == 4


def test_characters_of_several_tokens_appear_with_the_last_of_them():
    _, reading = reading_of("é€!", {}, ByteTokenizer())
    assert reading.tokens == ["", "é", "", "", "€", "!"]
    _, cut = reading_of("aé", {}, ByteTokenizer())
    model = random_gpt(SMALL, 256)
    half = read(model, ByteTokenizer(), ByteTokenizer().encode("aé")[:2], InspectConfig(), 3)
    assert cut.text == "aé"
    assert half.text == "a\ufffd"


@pytest.mark.parametrize("options", [{}, {**MODERN, **EXPERT}], ids=["gpt2", "modern"])
def test_the_json_form_has_all_tokens_and_only_numbers_of_json(options):
    _, reading = reading_of(options=options)
    content = json.loads(json.dumps(reading.to_dict(), allow_nan=False))
    assert "".join(token["token"] for token in content["tokens"]) == content["text"] == TEXT
    assert [token["id"] for token in content["tokens"]] == reading.ids.tolist()
    assert content["tokens"][3]["surprise"] == pytest.approx(reading.surprise[3].item())
    stages = [stage for stage in STAGES if options or stage != "expert"]
    assert list(content["tokens"][0]["next"][0]) == ["token", "id", *stages]
    assert content["tokens"][5]["next"][1]["top_k"] == pytest.approx(reading.next_probabilities["top_k"][5, 1].item())
    assert content["tokens"][3]["probabilities"]["model"] == pytest.approx(math.exp(-reading.surprise[3].item()))
    assert content["tokens"][0]["probabilities"] == dict.fromkeys(stages)
    of_parts = {"expert_share", "ngram_share", "expert_context"} & set(content["tokens"][1])
    assert len(of_parts) == (3 if options else 0)
    assert content.get("expert_weight") == (pytest.approx(0.4) if options else None)
    contexts = [token.get("expert_context") for token in content["tokens"]]
    assert contexts == (reading.expert_context.tolist() if options else [None] * len(TEXT))


def test_html_holds_the_text_as_text():
    _, reading = reading_of("<b>&a")
    shown = reading._repr_html_()
    assert re.sub("<[^>]*>", "", shown) == "&lt;b&gt;&amp;a"
    assert len(re.findall("<span", shown)) == 5
    assert f"{reading.surprise[1].item():.2f} nats" in shown
    assert repr(reading) == f"<Reading of 5 tokens, {reading.mean_surprise:.2f} nats per token>"


def test_figures_show_each_token_and_each_head():
    pytest.importorskip("matplotlib", reason="needs matplotlib (the extra plot)")
    _, reading = reading_of()
    surprise = reading.plot_surprise()
    (axes,) = surprise.axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([0.0, *reading.surprise[1:].tolist()])
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["a", "␣", "b"]
    attention = reading.plot_attention(layer=1)
    shown = [axes.images[0].get_array() for axes in attention.axes if axes.images]
    assert len(shown) == 2
    assert torch.equal(torch.as_tensor(shown[1].copy()), reading.windows[0].attention[1, 1])
    for figure in (surprise, attention):
        assert figure._repr_png_().startswith(b"\x89PNG")
