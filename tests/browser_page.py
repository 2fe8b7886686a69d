"""A browser with the page of a server, for tests; what the page should never do is an error."""

import contextlib
import functools
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OFFLINE = (  # a browser of our own, which asks nobody anything but the server
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PHONE, DESKTOP = {"width": 390, "height": 800}, {"width": 1200, "height": 900}
REFUSED = re.compile(r"status of (400|401|404|409)|ERR_CONNECTION_REFUSED")  # Chromium logs each
TIMEOUT = 60_000  # milliseconds, for one action


@functools.cache
def missing_reason() -> str:
    """Why the tests in a browser cannot run; empty if they can."""
    try:
        import axe_playwright_python  # noqa: F401
        import playwright  # noqa: F401
    except ImportError as error:
        return f"needs {error.name}; .ci/browser installs what these tests need"
    return "" if CHROMIUM else "needs Chromium; .ci/browser installs it"


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*OFFLINE])
        yield chromium
        chromium.close()


def wait_until(page: Any, script: str, argument: Any = None) -> None:
    """Wait until JavaScript gives a true value. The page's policy forbids Playwright's own `wait_for_function`."""
    deadline = time.monotonic() + TIMEOUT / 1000
    while not page.evaluate(script, argument):
        assert time.monotonic() < deadline, f"not true within {TIMEOUT / 1000:g} s: {script}"
        page.wait_for_timeout(20)  # the browser goes on meanwhile


@contextlib.contextmanager
def open_page(
    browser: Any,
    address: str,
    view: str = "",
    *,
    may_be_refused: bool = False,
    with_clock: bool = False,
    init_script: str = "",
    **options: Any,
) -> Iterator[Any]:
    """A tab with the page. At its end: no error, nothing on the console, no request to elsewhere.

    `may_be_refused`: the server may say no, or have ended, which the browser writes to its console. `with_clock`: the
    page's time is that of `page.clock`. `init_script`: JavaScript that runs before that of the page.
    """
    problems: list[str] = []
    context = browser.new_context(**{"viewport": DESKTOP, "locale": "en-GB", **options})
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    if with_clock:
        page.clock.install()
    page.add_init_script(init_script)

    def note(message: Any) -> None:
        if not (may_be_refused and REFUSED.search(message.text)):
            problems.append(f"{message.type}: {message.text}")

    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith((address, "data:")) else problems.append(asked.url))
    try:
        page.goto(f"{address}/{view and '#'}{view}")
        page.wait_for_selector("section:not([hidden]) h2, dialog[open]")
        yield page
        assert page.locator("main :is(script, img, b, iframe)").count() == 0, "a text has become HTML"
    finally:
        context.close()
    assert problems == []


def choose_view(page: Any, title: str) -> None:
    """Click `title` at the top of the page, and wait until its view is shown, which is a moment later."""
    page.click(f"nav >> text={title}")
    page.wait_for_selector(f"section[aria-label='{title}']")
