"""The page in Chromium for everybody: axe's rules, light and dark, on a phone, by keyboard, with a token."""

import itertools
import os
from pathlib import Path

import pytest
from browser_page import DESKTOP, PHONE, choose_view, open_browser, open_page, wait_until
from conftest import TEXT
from served_app import ask, server_process
from tiny import TINY

import nanogpt_lite as ng

pytestmark = pytest.mark.browser

PICTURES = (
    os.environ.get("NANOGPT_LITE_PICTURES") and Path(os.environ["NANOGPT_LITE_PICTURES"]).resolve()
)  # a folder, in which the pictures of docs/page.md are drawn
SHOWN_RUN = os.environ.get("NANOGPT_LITE_RUN")  # the folder of a run for these pictures, trained on Shakespeare
NAME = "bottles-with-a-long-name-that-does-not-fit-anywhere"
PROMPT, READ = (
    ("ROMEO:\n", "ROMEO:\nWhat light is this that breaks?\n\nJULIET:\nO Romeo")
    if SHOWN_RUN
    else ("9 green", TEXT[:100])
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    shown = SHOWN_RUN and Path(SHOWN_RUN).resolve()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("looks"))
        if shown:
            Path("runs").mkdir()
            Path("runs", shown.name).symlink_to(shown)
        else:
            Path("bottles.txt").write_text(TEXT, encoding="utf-8", newline="\n")
            options = {**TINY, "ngram_expert": 4, "keep_early": 10, "log_interval": 2, "sample_interval": 10}
            ng.train("bottles.txt", **options, out_dir=f"runs/{NAME}")
        with server_process(None, "--device", "cpu", "--threads", "1") as (address, _):
            yield address


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


def fill_view(page, view):
    """Do what a view is for."""
    if view == "write":
        page.fill("#prompt", PROMPT)
        page.click("#view-write form summary")
        if not PICTURES:
            page.fill("#write-max_tokens", "50")
        page.click("#view-write button.main")
        page.wait_for_selector("text=/^done after/")
        page.click("text=The same by a command")
    if view == "look":
        page.fill("#look-text", READ)
        page.click("#view-look button.main")
        page.wait_for_selector(".matrices canvas")
        page.focus(".tokens")
        for key in ("End", *["ArrowLeft"] * 4):
            page.keyboard.press(key)
    if view == "train":
        page.wait_for_selector(".verdict")
        page.locator("#view-train figure summary").first.click()
        if not PICTURES:
            page.click("text=More options")
    if view == "time":
        page.fill("#time-prompt", PROMPT)
        page.click("#view-time button.main")
        page.wait_for_selector("#view-time .status:text-is('')", state="attached")
        page.locator("#time-step").press("End")
        page.wait_for_selector("#view-time .panels .text")


LOOKS = list(itertools.product((DESKTOP, PHONE), ("light", "dark")))


@pytest.mark.parametrize(("view", "first"), list(zip(("write", "look", "train", "time"), LOOKS, strict=True)))
def test_view_keeps_the_rules_of_axe_and_fits(browser, address, view, first):
    """Light and dark, on a desk and on a phone, of which each is the first one of a view; then it changes as it is."""
    from axe_playwright_python.sync_playwright import Axe

    first = LOOKS[0] if PICTURES else first
    with open_page(browser, address, view, viewport=first[0], color_scheme=first[1]) as page:
        fill_view(page, view)
        if PICTURES:
            page.screenshot(path=Path(PICTURES, f"page-{view}.png"), full_page=True)
        for size, scheme in (first, *LOOKS):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            found = Axe().run(page).response["violations"]
            described = [(rule["id"], rule["impact"], rule["nodes"][0]["html"][:200]) for rule in found]
            assert described == [], (size, scheme)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (size, "it scrolls sideways")


def test_keyboard_alone_writes_a_text_and_looks_inside(browser, address):
    with open_page(browser, address) as page:
        page.wait_for_selector("#prompt")

        def tab_to(selector):
            for _ in range(40):
                page.keyboard.press("Tab")
                if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                    return
            raise AssertionError(f"no Tab reaches {selector}")

        tab_to(".skip")
        tab_to("#prompt")
        page.keyboard.type("9 green")
        tab_to("#view-write button.main")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=/^done after/")
        tab_to("article button:text-is('Look inside')".replace(":text-is('Look inside')", ":nth-of-type(2)"))
        page.keyboard.press("Enter")
        page.wait_for_selector(".detail h3")
        tab_to(".tokens")
        page.keyboard.press("Home")
        assert page.text_content(".detail h3") == "“9”"


def test_token_is_asked_for_until_it_is_right(browser, address):
    with server_process(Path("runs", NAME), "--token", "secret") as (
        guarded,
        _,
    ):
        with open_page(browser, guarded, may_be_refused=True) as page:
            assert page.is_hidden("text=That is not the token.")
            page.fill("#token input", "wrong")
            page.click("#token button")
            page.wait_for_selector("text=That is not the token.")
            page.fill("#token input", "secret")
            page.click("#token button")
            page.wait_for_selector("#prompt")
            page.fill("#prompt", "9 green")
            page.click("#view-write button.main")
            page.wait_for_selector("text=/^done after/")
            page.reload()
            page.wait_for_selector("#prompt")  # the tab knows the token


def test_server_that_has_ended_is_said(browser, address):
    with server_process(Path("runs", NAME)) as (ending, process):
        with open_page(browser, ending, may_be_refused=True) as page:
            page.wait_for_selector("#prompt")
            process.terminate()
            process.wait()
            page.click("#view-write button.main")
            text = page.wait_for_selector("#view-write .status.error").text_content()
            assert text == "the server does not answer; is it still running?"


def test_skip_link_stays_in_the_view(browser, address):
    with open_page(browser, address, "train") as page:
        page.wait_for_selector(".facts dd")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#main"
        assert page.is_visible("#view-train")


def test_text_goes_on_with_the_network_that_read_it(browser, address):
    with open_page(browser, address, "look") as page:
        page.select_option("#model", f"{NAME}/early_000005")
        page.fill("#look-text", "9 green")
        page.click("#view-look button.main")
        page.wait_for_selector(".detail tbody button")
        page.select_option("#model", NAME)
        page.locator(".detail tbody button").first.click()
        page.wait_for_selector("text=/^done after/")
        assert page.text_content("#view-write article h3") == f"{NAME}/early_000005"


def test_page_through_another_server_shows_its_errors(browser, address):
    with (
        server_process(None, "--remote", address) as (local, _),
        open_page(browser, local, may_be_refused=True) as page,
    ):
        page.fill("#prompt", "é")
        page.click("#view-write button.main")
        assert "U+00E9" in page.wait_for_selector("#view-write .status.error").text_content()


def test_server_with_an_open_page_answers_others_and_ends_at_once(browser, address):
    expected = ng.sample(Path("runs", NAME), start="9 green", max_new_tokens=40, device="cpu", threads=1)[0]
    with server_process(Path("runs", NAME)) as (ending, process):
        with open_page(browser, ending, may_be_refused=True) as page:
            page.fill("#prompt", "9 green")
            page.click("#view-write form summary")
            page.fill("#write-max_tokens", "16000")
            page.click("#view-write button.main")
            wait_until(page, "document.querySelector('#view-write .text')?.textContent.length > 20")
            choose_view(page, "Train")
            page.wait_for_selector(".facts dd")
            choose_view(page, "Write")
            page.click("#view-write button:text-is('Stop')")
            status, content = ask(ending, {"prompt": "9 green", "max_tokens": 40})
            assert (status, "9 green" + content["choices"][0]["text"]) == (200, expected)
            page.click("#view-write button.main")
            wait_until(page, "document.querySelector('#view-write .text')?.textContent.length > 20")
            process.terminate()
            assert process.wait(30) in (0, -15, 143)
            assert "the server has stopped" in page.wait_for_selector("#view-write .status.error").text_content()
