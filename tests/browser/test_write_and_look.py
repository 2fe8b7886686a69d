"""The page in Chromium: what networks write, and what they make of a text. Numbers are those of the library."""

import itertools
import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from browser_page import choose_view, open_browser, open_page, wait_until
from conftest import TEXT, wait_for
from page_networks import NETWORKS, PROMPTS, folder
from served_app import health, server_process

import nanogpt_lite as ng

__all__ = ["folder"]  # a fixture

pytestmark = pytest.mark.browser

OPTIONS: dict[str, Any] = {"seed": 3, "max_new_tokens": 40, "temperature": 1.5}


@pytest.fixture(scope="module")
def address(folder):
    with server_process(folder / "runs" / "default") as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


def run_of(name):
    return ng.Run(Path("runs", name))


def set_options(page, view, **values):
    page.locator(f"#view-{view} form summary").first.click()
    for name, value in values.items():
        page.fill(f"#{view}-{name}", str(value))


def written(page):
    """The texts on the page, each with its prompt, when all are written."""
    wait_until(
        page,
        "[...document.querySelectorAll('#view-write .panels .status')].every((s) => s.textContent.startsWith('done'))",
    )
    return page.locator("#view-write .panels .text").all_text_contents()


COLUMNS = {
    "network": "by the network alone",
    "expert": "by counted n-grams alone",
    "model": "both, mixed",
    "temperature": "after temperature",
    "top_k": "after top_k",
    "top_p": "after top_p",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_written_text_is_that_of_the_library_and_of_the_commands_that_are_shown(browser, address, folder, name):
    expected = ng.sample(run_of(name), start=PROMPTS[name], device="cpu", threads=1, **OPTIONS)[0]
    with open_page(browser, address) as page:
        page.select_option("#model", name)
        page.fill("#prompt", PROMPTS[name])
        set_options(page, "write", seed=3, max_tokens=40, temperature=1.5)
        page.click("#view-write button.main")
        assert written(page) == [expected]
        page.click("text=The same by a command")
        sample, curl = page.locator(".command code").all_text_contents()
    words = shlex.split(sample)
    assert words[0] == "nanogpt-lite"
    printed = subprocess.run([sys.executable, "-m", "nanogpt_lite", *words[1:]], capture_output=True, check=True)
    assert printed.stdout.decode() == expected + "\n"
    answer = subprocess.run(shlex.split(curl), capture_output=True, check=True).stdout.decode()
    events = [json.loads(line.removeprefix("data: ")) for line in answer.splitlines() if line.startswith("data: {")]
    assert PROMPTS[name] + "".join(event["choices"][0]["text"] for event in events) == expected


def test_two_networks_write_side_by_side(browser, address, folder):
    with open_page(browser, address) as page:
        page.fill("#prompt", "9 green")
        page.check("#compare")
        page.select_option("#other", "gpt2")
        set_options(page, "write", seed=3, max_tokens=40, temperature=1.5)
        page.click("#view-write button.main")
        texts = written(page)
        assert page.locator("#view-write article h3").all_text_contents() == ["default", "gpt2"]
    options: dict[str, Any] = {"start": "9 green", "device": "cpu", "threads": 1, **OPTIONS}
    assert texts == [ng.sample(run_of(name), **options)[0] for name in ("default", "gpt2")]


def test_texts_before_stay_under_the_last_one(browser, address):
    with open_page(browser, address) as page:
        set_options(page, "write", max_tokens=5)
        texts = []
        for seed in (1, 2, 3):
            page.fill("#write-seed", str(seed))
            page.click("#view-write button.main")
            texts += written(page)
        assert page.locator("#view-write details article .text").all_text_contents() == [texts[1], texts[0]]
        assert page.locator("#view-write .panels article").count() == 1


def test_second_network_is_another_one(browser, address):
    with open_page(browser, address) as page:
        assert page.input_value("#other") != page.input_value("#model")
        page.select_option("#model", page.input_value("#other"))
        assert page.input_value("#other") != page.input_value("#model")
        page.select_option("#other", page.input_value("#model"))
        choose_view(page, "Train")
        choose_view(page, "Write")
        assert page.input_value("#other") == page.input_value("#model"), "that was chosen"


def test_stop_ends_the_text_and_the_computation(browser, address):
    with open_page(browser, address) as page:
        page.select_option("#model", "gpt2")
        set_options(page, "write", max_tokens=16_000)
        page.click("#view-write button.main")
        wait_until(page, "document.querySelector('#view-write .text').textContent.length > 20")
        page.click("#view-write button:text-is('Stop')")
        page.wait_for_selector("text=/^stopped after/")
        wait_for(lambda: not health(address)["is_generating"])
        assert page.is_disabled("#view-write button:text-is('Stop')")


def test_mistake_is_said_with_the_message_of_the_server(browser, address):
    with open_page(browser, address, may_be_refused=True) as page:
        page.fill("#prompt", "é")
        page.click("#view-write button.main")
        assert "U+00E9" in page.wait_for_selector("#view-write .status.error").text_content()
        page.fill("#prompt", "9")
        set_options(page, "write", temperature=-1)
        page.click("#view-write button.main")
        page.wait_for_selector("#view-write .status.error >> text=temperature=-1")


def reading_on_page(page, name, text):
    page.select_option("#model", name)
    choose_view(page, "Look inside")
    page.fill("#look-text", text)
    page.click("#view-look button.main")
    page.wait_for_selector(".detail h3")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_look_inside_has_the_numbers_of_the_library(browser, address, folder, name):
    text = NETWORKS[name][0][:24]
    reading = ng.inspect(run_of(name), text, device="cpu", threads=1)
    with open_page(browser, address) as page:
        reading_on_page(page, name, text)
        tokens = page.locator(".tokens .token:not(.next)")
        shown = [token.replace("⏎\n", "\n").replace("◌", "") for token in tokens.all_text_contents()]
        assert shown == reading.tokens
        titles = [token.get_attribute("title") for token in tokens.all()]
        assert titles == ["the first token", *(f"{value:.2f} nats" for value in reading.surprise[1:].tolist())]
        levels = [sum(value >= limit for limit in (0.5, 1, 2, 4)) for value in reading.surprise[1:].tolist()]
        classes = [token.get_attribute("class").split() for token in tokens.all()[1:]]
        assert [names[1] for names in classes] == [f"level-{level}" for level in levels]
        assert f"{reading.mean_surprise:.2f} nats" in page.text_content("#view-look > .status")
        L, H = reading.attention.shape[:2]
        assert page.locator(".matrices canvas").count() == L * H
        assert page.locator(".detail .lens tr").count() == len(reading.lens.ids)
        shown = check_distribution(page, reading, len(reading.tokens))
        assert ("model" in shown) == (reading.expert_share is not None)
        check_heads(page, reading)


def test_each_filter_that_changes_something_has_a_column(browser, address, folder):
    filters: dict[str, Any] = {"temperature": 2.0, "top_k": 8, "top_p": 0.9, "min_p": 0.1}
    reading = ng.inspect(run_of("default"), "9 green", device="cpu", threads=1, **filters)
    with open_page(browser, address) as page:
        choose_view(page, "Look inside")
        set_options(page, "look", **filters)
        reading_on_page(page, "default", "9 green")
        assert len(check_distribution(page, reading, len(reading.tokens))) >= 4


def percent(value):
    return f"{100 * value:.0f} %" if value >= 0.0995 else f"{100 * value:.1f} %"


def chance(value):
    """A probability; a small one as one in so many."""
    if value == 0 or value >= 0.0005:
        return percent(value)
    return "under 1 in a million" if value < 1e-6 else f"1 in {float(f'{1 / value:.2g}'):,.0f}"


def check_distribution(page, reading, position):
    """The table of what may come at a position, at each stage."""
    page.focus(".tokens")
    page.keyboard.press("End" if position == len(reading.tokens) else "Home")
    rows = page.locator(".detail figure").first.locator("tbody tr")
    assert rows.count() == reading.next_ids.size(1)
    columns = {
        stage: [chance(value) for value in probabilities[position - 1].tolist()]
        for stage, probabilities in reading.next_probabilities.items()
    }
    parallel = ["expert"] if "expert" in columns else []  # always shown; no later stage changes it
    chain = [stage for stage in columns if stage != "expert"]
    shown = ["network", *(stage for before, stage in itertools.pairwise(chain) if columns[stage] != columns[before])]
    shown[1:1] = parallel
    titles = page.locator(".detail figure").first.locator("thead th").all_text_contents()
    assert titles == ["token", "chance to be drawn", "take this one", *(COLUMNS[stage] for stage in shown[:-1])]
    for place, row in enumerate(rows.all()):
        values = [columns[stage][place] for stage in (shown[-1], *shown[:-1])]
        assert row.locator("td.probability").all_text_contents() == values
    return shown


def test_token_that_came_has_its_chance_also_if_others_were_likelier(browser, address, folder):
    text = NETWORKS["default"][0][:60]
    reading = ng.inspect(run_of("default"), text, device="cpu", threads=1, top=1, temperature=0.5)
    position = int(reading.rank.argmax())
    assert reading.rank[position] >= reading.next_ids.size(1)
    with open_page(browser, address) as page:
        choose_view(page, "Look inside")
        set_options(page, "look", top=1, temperature=0.5)
        reading_on_page(page, "default", text)
        page.locator(".tokens .token").nth(position).click()
        rows = page.locator(".detail figure").first.locator("tbody tr")
        assert rows.count() == reading.next_ids.size(1) + 1
        assert rows.last.get_attribute("class") == "actual"
        assert rows.last.locator("th").text_content() == text[position].replace(" ", "␣").replace("\n", "⏎")
        drawn = chance(reading.probabilities["min_p"][position].item())
        assert rows.last.locator("td.probability").first.text_content() == drawn
        said = page.text_content(".detail p")
        assert f"Its probability was {chance(math.exp(-reading.surprise[position].item()))}," in said
        assert f"{reading.rank[position]} tokens were likelier" in said
        assert page.locator(".why li").first.text_content().startswith(("Chance: of 100 draws at", "Not by chance: "))


@pytest.mark.parametrize("name", NETWORKS)
def test_each_token_is_explained_by_chance_counts_and_the_blocks_of_the_network(browser, address, folder, name):
    text = NETWORKS[name][0][:16]
    text += text[::-1]  # so that some tokens are unlikely
    reading = ng.inspect(run_of(name), text, device="cpu", threads=1, temperature=0.7, top_k=3)
    seen = set()
    with open_page(browser, address) as page:
        choose_view(page, "Look inside")
        set_options(page, "look", temperature=0.7, top_k=3)
        reading_on_page(page, name, text)
        for position in range(1, len(reading.tokens)):
            page.locator(".tokens .token").nth(position).click()
            chance, *counts, network, attention = page.locator(".why li").all_text_contents()
            assert attention.endswith("see Attention, below.")
            seen |= {check_chance(chance, {stage: p[position].item() for stage, p in reading.probabilities.items()})}
            seen |= {check_blocks(network, reading, position)}
            assert len(counts) == (reading.expert_share is not None)
            for sentence in counts:
                check_counts(sentence, reading, position)
        page.locator(".tokens .token").first.click()
        assert page.locator(".why").count() == 0, "nothing comes before the first token"
    assert {"drawn", "never"} <= seen
    assert None in seen, "some tokens are not the first choice of the network"
    assert len(seen - {"drawn", "never", None}) >= 1, "and some are"


def visible(text):
    return text.replace(" ", "␣").replace("\n", "⏎") or "(part)"


def check_chance(sentence, probabilities):
    drawn = probabilities["min_p"]
    if drawn == 0:
        assert "the network never takes it here" in sentence
        return "never"
    assert ("the network always takes it" in sentence) == (drawn == 1)
    if drawn < 1:
        names = ["temperature", "top_k", "top_p", "min_p"]
        shown = [chance(probabilities[stage]) for stage in ("model", *names)]
        changes = [
            name for name, (before, after) in zip(names, itertools.pairwise(shown), strict=True) if before != after
        ]
        by = f" Its probability of {shown[0]} became {shown[-1]} by {' and '.join(changes)}, as set above."
        often = round(100 * drawn)
        rare = shown[-1] if drawn < 0.0005 else f"1 in {round(1 / drawn)}"
        said = {0: f", and a rare one: {rare} draws at this position gives it."}
        usual = f": of 100 draws at this position, {'almost all' if often == 100 else f'about {often}'} give it."
        assert sentence == f"Chance{said.get(often, usual)}{by if changes else ''}"
    return "drawn"


def check_counts(sentence, reading, position):
    known = int(reading.expert_context[position - 1])
    context = visible("".join(reading.tokens[position - known : position]))
    assert (f"what follows “{context}” in the text" in sentence) == (known > 0)
    assert ("only how common each token is" in sentence) == (known == 0)
    numbers = re.findall(r"[\d.]+ %|1 in [\d,]+|under 1 in a million", sentence.rpartition("”")[2])
    p = {stage: chance(reading.probabilities[stage][position].item()) for stage in ("expert", "network", "model")}
    weights = [percent(reading.expert_weight), percent(1 - reading.expert_weight)]
    assert numbers == [p["network"], *weights, p["model"]]
    assert f"Counted n-grams gave it {p['expert']}: " in sentence


def check_blocks(sentence, reading, position):
    """The block from which on the token is the likeliest, by the logit lens; 0 is its input, None is nowhere."""
    lens = [row[position - 1] for row in reading.lens.ids[..., 0].tolist()]
    is_likeliest = [token == int(reading.ids[position]) for token in lens]
    first = next((layer for layer in range(len(is_likeliest)) if all(is_likeliest[layer:])), None)
    said = re.search(r"from block (\d+) on; before that, “(.*)” was", sentence)
    assert ("not its first choice" in sentence) == (first is None)
    if first is None:
        p = reading.probabilities["network"][position].item()
        assert (
            f"has {chance(p)} there: not its first choice, {'and a rare one' if p < 0.01 else 'but possible'}."
            in sentence
        )
    suggests = "few tokens alone suggest" if reading.ngram_share is not None else "token alone suggests"
    assert (f"even before block 1 has computed anything: the last {suggests} it" in sentence) == (first == 0)
    assert (int(said[1]) if said else None) == (first or None)
    return first


def check_heads(page, reading):
    """The table of where each head looks: shares of places, on average over the tokens. The largest are marked.

    From a tenth on, and from nine tenths of the largest one on: a share of 37 % is as large as another of 37 %.
    """
    every = []
    weights = reading.attention
    _, H, T, _ = weights.shape
    for number, row in enumerate(page.locator("table.heads tbody tr").all()):
        head = weights[number // H, number % H]
        itself = head.diagonal().sum() / T
        before, two_before = head.diagonal(-1).sum() / T, head.diagonal(-2).sum() / T
        first = head[3:, 0].sum() / T
        places = [itself, before, two_before, first, 1 - itself - before - two_before - first]
        every.append([place.item() if isinstance(place, torch.Tensor) else place for place in places])
        shown = [float(text.removesuffix(" %")) for text in row.locator("td").all_text_contents()]
        assert shown == pytest.approx([100 * value.item() for value in places], abs=0.51)
    marked = [
        [number for number, row in enumerate(page.locator("table.heads tbody tr").all()) if is_marked(row, column)]
        for column in range(5)
    ]
    for column, shares in enumerate(zip(*every, strict=True)):
        largest = [number for number, share in enumerate(shares) if share >= 0.1 and share >= 0.9 * max(shares)]
        assert marked[column] == (largest if len(shares) > 1 else [])
    said = page.text_content("figure:has(table.heads) figcaption")
    names = [f"block {number // H + 1}, head {number % H + 1}" for number in marked[1]]
    assert ("look at the token one before" in said.replace("looks", "look")) == bool(names)
    assert all(name in said for name in names)
    assert ("less than half" in said) == (bool(names) and max(shares[1] for shares in every) < 0.5)


def is_marked(row, column):
    return row.locator("td").nth(column).get_attribute("class") == "largest"


def test_arrow_keys_choose_tokens_and_another_one_goes_on(browser, address, folder):
    with open_page(browser, address) as page:
        reading_on_page(page, "default", "9 green bottles")
        page.focus(".tokens")
        page.keyboard.press("Home")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert page.text_content(".detail h3") == "“r”"
        assert page.get_attribute(".tokens", "aria-activedescendant") == "token-3"
        row = page.locator(".detail tbody tr").nth(1)
        other = row.locator("th").text_content().replace("␣", " ").replace("⏎", "\n")
        row.locator("button").click()
        (text,) = written(page)
        assert text.startswith("9 g" + other)
        assert page.input_value("#prompt") == "9 g" + other


def test_arcs_are_drawn_to_the_tokens_that_are_attended_to(browser, address, folder):
    text = "9 green bottles"
    weights = ng.inspect(run_of("default"), text, device="cpu", threads=1).attention
    with open_page(browser, address) as page:
        reading_on_page(page, "default", text)
        page.focus(".tokens")
        page.keyboard.press("End")
        page.select_option("#attention-head", index=1)
        assert page.locator(".arcs path").count() == (weights[0, 1, -1] >= 0.03).sum()
        top = weights[0, 1, -1].topk(1)
        said = page.text_content("#attention-weights")
        assert percent(top.values.item()) in said
        assert said.startswith("To expect what comes next, this head looked from “s” at ")
        page.keyboard.press("ArrowLeft")
        assert page.locator(".arcs path").count() == (weights[0, 1, -2] >= 0.03).sum(), "of the token before it"
        assert page.text_content("#attention-weights").startswith("To expect “s”, this head looked from “e” at ")
        page.keyboard.press("Home")
        assert page.locator(".arcs path").count() == 0


def test_long_text_is_read_without_attention_and_says_so(browser, address, folder):
    with open_page(browser, address, may_be_refused=True) as page:
        reading_on_page(page, "default", TEXT[:3000])
        assert page.locator(".tokens .token:not(.next)").count() == 3000
        assert page.locator(".matrices").count() == 0
        assert "Without attention: the attention of 3000 tokens" in page.text_content("#view-look > .status")


def test_temperature_comes_with_the_text_into_the_look_inside_and_back(browser, address, folder):
    with open_page(browser, address) as page:
        page.fill("#prompt", "9 green")
        set_options(page, "write", seed=3, max_tokens=40, temperature=0.3)
        page.click("#view-write button.main")
        written(page)
        page.click("article >> text=Look inside")
        page.wait_for_selector(".detail tbody button")
        assert page.input_value("#look-temperature") == "0.3"
        assert page.get_attribute(".tokens", "aria-activedescendant") == "token-7", "the first one after the prompt"
        page.click("#view-look form summary")
        page.fill("#look-temperature", "0.6")
        page.click("#view-look button.main")
        page.wait_for_selector(".detail tbody button")
        page.locator(".detail tbody button").first.click()
        assert page.input_value("#write-temperature") == "0.6"


def test_names_and_texts_with_html_stay_text(browser, address, folder):
    name = "<b>&'\""
    with open_page(browser, address) as page:
        page.select_option("#model", name)
        page.fill("#prompt", "<script>alert(1)</script><img src=x onerror=alert(1)>")
        page.click("#view-write button.main")
        (text,) = written(page)
        assert text.startswith("<script>alert(1)</script><img src=x onerror=alert(1)>")
        assert page.text_content("#view-write h3") == name
        choose_view(page, "Train")
        page.wait_for_selector(".facts dd")
        assert name in page.locator(".run-list strong").all_text_contents()


def test_what_was_typed_and_chosen_is_there_after_a_reload(browser, address, folder):
    with open_page(browser, address) as page:
        page.select_option("#model", "gpt2")
        page.fill("#prompt", "9 green")
        page.check("#compare")
        page.select_option("#other", "chinese")
        set_options(page, "write", seed=3)
        choose_view(page, "Train")
        page.fill("#run-name", "second")
        page.select_option("#run-dataset", "a text of your own")
        page.fill("#run-text", "9" * 100_001)  # too much to keep
        page.select_option("#run-preset", "modern-cpu")
        choose_view(page, "Time")
        page.select_option("#time-run", "bpe")
        choose_view(page, "Train")
        for _ in range(2):
            page.reload()
            page.wait_for_selector("#view-train .facts dd")
        assert [page.input_value(f"#{name}") for name in ("model", "time-run")] == ["gpt2", "bpe"]
        names = ["run-name", "run-dataset", "run-text", "run-preset"]
        values = [page.input_value(f"#{name}") for name in names]
        assert values == ["second", "a text of your own", "", "modern-cpu"]
        assert page.is_visible("#run-text")
        assert page.get_attribute("#train-max_iters", "placeholder") == "follows from the text"
        choose_view(page, "Write")
        assert [page.input_value(f"#{name}") for name in ("prompt", "other", "write-seed")] == [
            "9 green",
            "chinese",
            "3",
        ]
        assert page.is_checked("#compare")
        assert page.is_visible("#write-seed"), "what is not as it is by default is seen"
        other = page.context.new_page()
        other.goto(address)
        other.wait_for_selector("#prompt")
        assert other.input_value("#prompt") == "", "it is another tab"


def test_what_is_kept_in_the_tab_may_be_anything(browser, address, folder):
    script = "sessionStorage.setItem('nanogpt_lite typed', '{{')"
    with open_page(browser, address, init_script=script) as page:
        page.fill("#prompt", "9 green")
    kept = json.dumps({"model": "deleted", "other": 3, "prompt": None, "no-such-field": "x", "compare": "yes"})
    with open_page(browser, address, init_script=f"sessionStorage.setItem('nanogpt_lite typed', {kept!r})") as page:
        assert page.input_value("#model") == "default"
