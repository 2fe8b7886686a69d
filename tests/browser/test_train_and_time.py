"""The page in Chromium: runs and their curves, trainings that are started, killed and resumed, early weights."""

import json
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from browser_page import choose_view, open_browser, open_page, wait_until
from conftest import TEXT, wait_for
from page_networks import CHINESE, GPT2, NETWORKS, PROMPTS
from page_networks import folder as networks
from served_app import server_process
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.runs.run_files import lock_run
from nanogpt_lite.tracking.records import DoneRecord, EvalRecord, StopReason

__all__ = ["networks"]  # a fixture

pytestmark = [pytest.mark.browser, pytest.mark.posix("signals to a training")]

SMALL = {
    "ngram_expert": 0,
    "n_layer": 1,
    "n_head": 1,
    "n_embd": 16,
    "block_size": 16,
    "batch_size": 4,
    "log_interval": 5,
}
LONG = {**SMALL, "max_iters": 100_000, "eval_interval": 50, "patience": 0}  # it does not end by itself


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bottles.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    return tmp_path


@pytest.fixture
def two_runs(folder):
    """Two runs with early weights, one with a sample on the way."""
    options = {**TINY, "log_interval": 2, "keep_early": 10}
    ng.train("bottles.txt", **options, sample_interval=10, out_dir="runs/one")
    ng.train("bottles.txt", **options, learning_rate=2e-3, out_dir="runs/two")
    return folder


TIME_IS_WRITTEN = """document.querySelector('#view-time .text').textContent.length > 100
  && document.querySelector('#view-time .status').textContent === ''"""


def start_server():
    return server_process(None, "--device", "cpu", "--threads", "1")


def records(name, kind):
    return [record for record in ng.Run(Path("runs", name)).metrics if record["kind"] == kind]


def points_on_page(page, curves):
    """The rows of the table under a curve: (curve, step, value)."""
    figure = page.locator("#view-train > figure").nth(curves)
    if figure.locator("details[open]").count() == 0:
        figure.locator("summary").click()
    figure.locator(".scroller tbody tr").first.wait_for()  # the browser fills the table a moment after it was opened
    cells = figure.locator(".scroller tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return [(name, int(step), float(value)) for name, step, value in cells]


def rounded(points):
    """As the table shows them: with seven digits."""
    return [(name, step, float(f"{value:.7g}")) for name, step, value in points]


def expected_points(name, prefix=""):
    evaluations = records(name, "eval")
    points = [(f"{prefix}val loss", record["step"], record["val_loss"]) for record in evaluations]
    points += [(f"{prefix}train loss", record["step"], record["loss"]) for record in records(name, "step")]
    if not prefix:  # of a run that is shown alone
        alone = [(record["step"], record.get("network_val_loss")) for record in evaluations]
        points += [("val loss of the network alone", step, loss) for step, loss in alone if loss is not None]
    return rounded(points)


@pytest.fixture(scope="module")
def address(networks):
    """A server of runs of each kind, which no test changes."""
    with server_process(networks / "runs" / "default") as (address, _):
        yield address


@pytest.mark.parametrize("name", list(NETWORKS)[:4])
def test_curves_have_the_points_of_the_records(browser, address, name):
    with open_page(browser, address, "train") as page:
        page.wait_for_selector(".facts dd")
        for box in page.locator(".run-list input:checked").all():
            box.uncheck()
        page.check(f"#show-run-{name}")
        page.wait_for_selector(f"h3:text-is('{name}')")
        assert points_on_page(page, 0) == expected_points(name)
        rates = [("learning rate", record["step"], record["learning_rate"]) for record in records(name, "step")]
        assert points_on_page(page, 1) == rounded(rates)
        (result,) = records(name, "result")
        assert page.text_content(".verdict") == f"Is my loss normal? {result['verdict'].replace('`', '')}"
        page.click("text=What it wrote on the way")
        assert page.locator("#view-train figure .text").all_text_contents() == [
            record["text"] for record in reversed(records(name, "sample"))
        ]


def test_run_that_is_being_trained_is_the_one_that_is_shown(browser, address):
    with lock_run(Path("runs/gpt2")), open_page(browser, address, "train") as page:
        page.wait_for_selector("h3:text-is('gpt2')")
        page.wait_for_selector("dd:text-is('training')")
        page.reload()
        page.wait_for_selector("h3:text-is('gpt2')")
        assert not page.is_checked("#show-run-default")


def test_runs_can_be_compared_also_after_a_reload(browser, address):
    with open_page(browser, address, "train") as page:
        page.check("#show-run-bpe")
        page.check("#show-run-gpt2")
        page.wait_for_selector("text=These runs cut their text into different tokens")
        page.check("#show-run-chinese")
        page.wait_for_selector("text=These runs did not learn the same text")
        page.uncheck("#show-run-chinese")
        for _ in range(2):
            page.reload()
            page.wait_for_selector("#show-run-gpt2:checked")
        # the records of gpt2 have come
        wait_until(page, "/gpt2: train loss \\d/.test(document.querySelector('.curves')?.ariaLabel)")
        expected = [point for name in ("default", "bpe", "gpt2") for point in expected_points(name, f"{name}: ")]
        assert sorted(points_on_page(page, 0)) == sorted(expected)
        for row, name in zip(page.locator("table.comparison tbody tr").all(), ("default", "bpe", "gpt2"), strict=True):
            (result,) = records(name, "result")
            best = f"{min(record['val_loss'] for record in records(name, 'eval')):.4f}"
            cells = row.locator("td").all_text_contents()
            assert (row.locator("th").text_content(), cells[0], cells[1]) == (name, "finished", best)
            losses = [record["val_loss"] for record in records(name, "eval")]
            assert losses[-1] == min(losses), "so there is one thing to say about the trend"
            assert cells[2] == "no: the val loss is at its lowest"
            assert cells[3] == result["verdict"].replace("`", "")
        page.uncheck("#show-run-bpe")
        page.uncheck("#show-run-gpt2")
        assert page.locator("table.comparison").count() == 0


@pytest.mark.parametrize(
    ("distance", "labels"),
    [
        (0.25, ["0.00", "0.25", "0.50"]),
        (0.005, ["0.000", "0.005", "0.010"]),
        (0.5, ["0.0", "0.5", "1.0"]),
        (20, ["0", "20", "40"]),
        (0.0025, ["0.0000", "0.0025", "0.0050"]),
    ],
)
def test_labels_of_an_axis_have_the_decimals_that_tell_them_apart(browser, address, distance, labels):
    script = "async ([ticks, distance]) => (await import('/page/curves.js')).tickLabels(null, ticks, 1, 0, distance)"
    with open_page(browser, address, "train") as page:
        assert page.evaluate(script, [[0, distance, 2 * distance], distance]) == labels


def test_legend_has_a_loss_only_at_a_step_of_its_curve(browser, address):
    losses = {record["step"]: record["val_loss"] for record in records("default", "eval")}
    train_losses = {record["step"]: record["loss"] for record in records("default", "step")}
    with open_page(browser, address, "train") as page:
        page.wait_for_selector(".facts dd")
        over = page.locator("#view-train figure .u-over").first
        over.scroll_into_view_if_needed()
        box = over.bounding_box()
        shown = {}
        for place in range(1, 100, 3):
            page.mouse.move(box["x"] + box["width"] * place / 100, box["y"] + 20)
            values = page.locator("#view-train figure .u-legend").first.locator(".u-value").all_text_contents()
            shown[int(values[0])] = values[1:3]
    assert len(shown) > 5
    assert set(losses) & set(shown), "a step of an evaluation is among them"
    assert set(shown) - set(losses), "and one of none"
    for step, (val_loss, train_loss) in shown.items():
        assert val_loss == (f"{losses[step]:.4f}" if step in losses else "–")
        assert train_loss == (f"{train_losses[step]:.4f}" if step in train_losses else "–")


@pytest.mark.parametrize("name", list(NETWORKS)[:4])
def test_time_shows_the_text_at_each_checkpoint(browser, address, name):
    with open_page(browser, address, "time") as page:
        page.select_option("#time-run", name)
        page.fill("#time-prompt", PROMPTS[name])
        page.fill("#time-seed", "3")
        page.click("#view-time button.main")
        steps = int(page.get_attribute("#time-step", "max")) + 1
        shown = {}
        for index in range(steps):
            page.evaluate(
                "(index) => { const s = document.getElementById('time-step'); s.value = index; "
                "s.dispatchEvent(new Event('change')); }",
                index,
            )
            wait_until(page, TIME_IS_WRITTEN)
            title = page.text_content("#view-time h3")
            shown[title] = page.text_content("#view-time .text")
        beside = [page.locator(f"#view-time .panels {part}").all_text_contents() for part in ("h4", ".text")]
    evaluations = {record["step"]: record for record in records(name, "eval")}
    checkpoints = [(5, "early_000005"), (10, "early_000010"), (20, "early_000020"), (20, "best")]
    options: dict[str, Any] = {"start": PROMPTS[name], "seed": 3, "max_new_tokens": 200, "device": "cpu", "threads": 1}
    expected = {
        f"Step {step}: {shown_name(checkpoint)}{shown_loss(checkpoint, evaluations.get(step))}": ng.sample(
            Path("runs", name), checkpoint=checkpoint, **options
        )[0]
        for step, checkpoint in checkpoints
    }
    assert list(shown.items()) == list(expected.items())
    assert dict(zip(*beside, strict=True)) == shown


def test_time_begins_with_the_prompt_of_write(browser, address):
    with open_page(browser, address) as page:
        page.fill("#prompt", "9 green")
        choose_view(page, "Time")
        assert page.input_value("#time-prompt") == "9 green"
        page.fill("#time-prompt", "8 green")
        choose_view(page, "Write")
        choose_view(page, "Time")
        assert page.input_value("#time-prompt") == "8 green"


@pytest.mark.parametrize(
    ("val_losses", "train_change", "reason", "state", "overfitting"),
    [
        ([2.0, 1.5, 1.4], -0.1, "max_iters", "all its steps are done", "no: the val loss is at its lowest"),
        ([2.0, 1.5, 1.6], -0.1, "patience", "its val loss did not fall any more", "yes: the val loss is 0.1000 above"),
        (
            [2.0, 1.5, 1.6],
            0.1,
            "patience",
            "its val loss did not fall any more",
            "no, but the val loss is 0.1000 above",
        ),
        (
            [2.0, 1.5, 1.509],
            -0.1,
            "max_seconds",
            "its time was over",
            "hardly: the val loss is 0.0090 above its lowest",
        ),
        ([2.0], -0.1, "target_loss", "its target_loss is reached", "not known before the second evaluation"),
    ],
)
def test_end_of_a_training_and_overfitting_are_said_in_words(
    browser, folder, val_losses, train_change, reason, state, overfitting
):
    Path("runs/made").mkdir(parents=True)
    evaluations = [
        EvalRecord(
            step=10 * number,
            train_loss=3.0 + train_change * number,
            val_loss=loss,
            best_val_loss=min(val_losses[:number]),
            is_best=loss == min(val_losses[:number]),
            seconds=number,
        )
        for number, loss in enumerate(val_losses, 1)
    ]
    done = DoneRecord(step=30, reason=StopReason(reason), best_val_loss=min(val_losses), best_step=10, seconds=9.0)
    lines = [json.dumps(record.to_json()) for record in (*evaluations, done)]
    Path("runs/made/metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with start_server() as (address, _), open_page(browser, address, "train") as page:
        wait_until(page, "document.querySelector('.facts dd')?.textContent.startsWith('finished: ')")
        facts = dict(zip(*(page.locator(f".facts {part}").all_text_contents() for part in ("dt", "dd")), strict=True))
        assert facts["state"].startswith(f"finished: {state}")
        assert facts["overfitting"].startswith(overfitting)
        ends_at_once = reason in ("patience", "target_loss")
        assert page.locator("button:text-is('Go on')").count() == (not ends_at_once)
        assert ("would end at once" in page.text_content(".buttons small")) == ends_at_once
        assert (
            facts["lowest val loss"] == f"{min(val_losses):.4f}, of step {10 * (1 + val_losses.index(min(val_losses)))}"
        )


def shown_loss(checkpoint, record):
    """The loss of what writes the text: of the network alone, or beside its n-gram expert."""
    if record is None:
        return ""
    alone = record.get("network_val_loss") if checkpoint.startswith("early") else None
    return f", val loss {record['val_loss'] if alone is None else alone:.4f}"


def shown_name(checkpoint):
    return "the network alone" if checkpoint.startswith("early") else "best and last"


def start_training(page, name, options, text=TEXT):
    page.fill("#run-name", name)
    page.select_option("#run-dataset", "a text of your own")
    page.fill("#run-text", text)
    if not page.is_visible("#train-n_layer"):
        page.click("text=More options")
    for option, value in options.items():
        field = page.locator(f"#train-{option}")
        if field.evaluate("(field) => field.tagName") == "SELECT":
            field.select_option(str(value).lower())
        else:
            field.fill(str(value))
    page.click("text=Start the training")


def test_without_a_run_the_page_offers_a_training_and_then_writes(browser, folder):
    with start_server() as (address, _), open_page(browser, address) as page:
        assert "There is no run yet" in page.text_content("#view-train")
        assert page.is_disabled("#model")
        start_training(page, "mine", {**SMALL, "max_iters": 20, "eval_interval": 10}, text="too short")
        page.wait_for_selector("text=The training of mine has ended with status 2.")
        page.wait_for_selector(".log:has-text('error:')")  # which is seen
        page.fill("#run-text", TEXT)
        page.click("text=Start the training")
        page.wait_for_selector("text=The training of mine has ended.")
        page.wait_for_selector("#model option[value='mine']", state="attached")
        choose_view(page, "Write")
        page.fill("#prompt", "9 green")
        page.click("#view-write button.main")
        page.wait_for_selector("text=/^done after/")
        text = page.text_content("#view-write .text")
    assert text == ng.sample("runs/mine", start="9 green", device="cpu", threads=1)[0]
    assert Path("runs/mine/mine.txt").read_text(encoding="utf-8") == TEXT
    assert sorted(path.stem for path in Path("runs/mine").glob("early_*")) == [
        "early_000005",
        "early_000010",
        "early_000020",
    ]


def last_step(name):
    steps = [record["step"] for record in ng.Run(Path("runs", name)).metrics]
    return max(steps, default=0)


def shown_step(page):
    return page.evaluate(
        "() => parseInt([...document.querySelectorAll('.facts div')].find((d) => d.textContent.startsWith('step'))"
        "?.querySelector('dd').textContent)"
    )


def test_training_is_stopped_and_goes_on(browser, folder):
    with start_server() as (address, _), open_page(browser, address, may_be_refused=True) as page:
        start_training(page, "long", LONG)
        page.click("text=Stop, and save")
        page.wait_for_selector("dd:text-matches('stopped; its state is saved')")
        stopped = last_step("long")
        assert (ng.Run(Path("runs/long")).metrics[-1]["reason"], stopped > 0) == ("interrupted", True)
        page.fill("#more-steps", str(stopped + 40))
        page.click("button:text-is('Go on')")
        page.wait_for_selector("dd:text-matches('finished')")
        wait_for(lambda: last_step("long") == stopped + 40)
        wait_until(page, f"document.querySelector('.facts')?.textContent.includes('{stopped + 40} of')")
        start_training(page, "long", LONG)
        assert "exists already" in page.wait_for_selector(".start [role=status].error").text_content()


def test_run_of_another_process_is_followed_through_a_kill_and_a_resume(browser, folder):
    words = [f"--{name}={value}" for name, value in {**LONG, "dataset": "bottles.txt", "out_dir": "runs/other"}.items()]
    command = [sys.executable, "-m", "nanogpt_lite", "train", "--device=cpu", "--threads=1"]

    def train(*more):
        with Path("log.txt").open("ab") as log:
            return subprocess.Popen([*command, *more], stdout=log, stderr=log)

    process = train(*words)
    try:
        wait_for(lambda: Path("runs/other/last.safetensors").exists())
        with start_server() as (address, _), open_page(browser, address, "train") as page:
            page.wait_for_selector("dd:text-is('training')")
            page.wait_for_selector("text=It was not started by this server")
            before = shown_step(page)
            wait_until(page, f"document.querySelector('.facts')?.textContent.match(/step(\\d+)/)[1] > {before}")
            process.send_signal(signal.SIGKILL)
            process.wait()
            page.wait_for_selector("dd:text-matches('not finished')")
            killed = last_step("other")  # by its file: the page may show the last records of it later
            process = train("--init_from=resume", "--out_dir=runs/other")
            page.wait_for_selector("dd:text-is('training')")
            wait_until(page, f"document.querySelector('.facts')?.textContent.match(/step(\\d+)/)[1] > {killed}")
            process.terminate()
            process.wait()
            page.wait_for_selector("dd:text-matches('stopped; its state is saved')")
            wait_until(page, f"document.querySelector('.facts')?.textContent.includes('{last_step('other')} of')")
            points = points_on_page(page, 0)
            assert points == expected_points("other")[-len(points) :]
            assert len(points) > 10
    finally:
        process.kill()
        process.wait()


def test_uploaded_file_is_the_text(browser, folder):
    with start_server() as (address, _), open_page(browser, address) as page:
        page.select_option("#run-dataset", "a text of your own")
        page.set_input_files("#run-file", "bottles.txt")
        wait_until(page, "document.getElementById('run-text').value.length > 100")
        assert page.input_value("#run-text") == TEXT
        Path("latin.txt").write_bytes("é".encode("latin-1"))
        page.set_input_files("#run-file", "latin.txt")
        page.wait_for_selector("text=latin.txt is not UTF-8 text")
        page.reload()
        page.wait_for_selector("#run-text")
        assert page.input_value("#run-text") == "", "a textarea would change the line breaks of a file"
        page.set_input_files("#run-file", "bottles.txt")
        wait_until(page, "document.getElementById('run-text').value.length > 100")
        page.fill("#run-text", "my text")
        page.reload()
        page.wait_for_selector("#run-text")
        assert page.input_value("#run-text") == "my text"


def test_training_that_was_started_is_shown_although_there_are_runs(browser, two_runs):
    """Of a Chinese text, in tokens by byte-pair encoding, with the architecture of GPT-2."""
    options = {**SMALL, **GPT2, "tokenizer": "bpe-300", "max_iters": 20, "eval_interval": 10}
    with start_server() as (address, _), open_page(browser, address, "train") as page:
        page.wait_for_selector("#show-run-two")
        start_training(page, "text", options, CHINESE)  # a name as the id of a field
        page.wait_for_selector("h3:text-is('text')")
        assert [box.is_checked() for box in page.locator(".run-list input").all()].count(True) == 1
        page.wait_for_selector("text=The training of text has ended.")
        wait_until(page, "document.querySelector('.facts').textContent.includes('20 of 20')")
        assert points_on_page(page, 0) == expected_points("text")
        page.click("label[for='run-text']")
        assert page.is_checked("#show-run-text"), "a label of the form belongs to the form"
        choose_view(page, "Write")
        page.select_option("#model", "text")
        page.fill("#prompt", "第9瓶")
        page.click("#view-write button.main")
        page.wait_for_selector("text=/^done after/")
        text = page.text_content("#view-write .text")
    config = json.loads(Path("runs/text/config.json").read_text(encoding="utf-8"))["config"]
    assert {name: config[name] for name in (*SMALL, *GPT2, "tokenizer")} == {**SMALL, **GPT2, "tokenizer": "bpe-300"}
    assert text == ng.sample("runs/text", start="第9瓶", device="cpu", threads=1)[0]


def test_all_runs_can_be_unchecked(browser, address):
    with open_page(browser, address, "train", with_clock=True) as page:
        page.wait_for_selector(".facts dd")
        for box in page.locator(".run-list input:checked").all():
            box.uncheck()
        page.wait_for_selector("text=Choose a run to see its curves.")
        with page.expect_response("**/api/runs"):  # the next look at the runs
            page.clock.run_for(11_000)
        assert page.locator(".run-list input:checked").count() == 0


def test_run_that_went_on_has_new_texts_in_time(browser, two_runs):
    with start_server() as (address, _), open_page(browser, address, "time") as page:
        page.select_option("#time-run", "one")

        def last_text():
            page.evaluate("() => { const s = document.getElementById('time-step'); s.value = s.max; }")
            page.click("#view-time button.main")
            wait_until(page, TIME_IS_WRITTEN)
            return page.text_content("#view-time h3"), page.text_content("#view-time .text")

        before = last_text()
        ng.train(init_from="resume", out_dir="runs/one", max_iters=60, eval_interval=20, learning_rate=1e-2)
        wait_until(page, "document.querySelector('#view-time h3').textContent.includes('Step 60')")
        after = last_text()
    assert before[1] != after[1]
    (expected,) = ng.sample("runs/one", max_new_tokens=200, device="cpu", threads=1)
    assert after[1] == expected.removeprefix("\n")


COUNT_REQUESTS = """
window.asked = [];
window.pending = 0;
const original = window.fetch;
window.fetch = (url, options) => {
  asked.push(url);
  pending += 1;
  return original(url, options).finally(() => { pending -= 1; });
};
"""


@pytest.mark.parametrize(("view", "is_training", "most"), [("train", True, 20), ("train", False, 2), ("time", True, 2)])
def test_open_page_asks_at_most_once_a_second_and_computes_nothing(browser, address, view, is_training, most):
    """In twenty seconds of the page's clock, second by second."""
    with lock_run(Path("runs/default")) if is_training else nullcontext():
        with open_page(browser, address, with_clock=True, init_script=COUNT_REQUESTS) as page:
            for name in ("Look inside", "Time", "Write", view.title()):
                choose_view(page, name)
            wait_until(page, "asked.length > 0 && pending === 0")
            before = page.evaluate("asked.length")
            for _ in range(20):
                start = page.evaluate("asked.length")
                page.clock.run_for(1000)
                assert page.evaluate("asked.length") <= start + 1
                wait_until(page, "pending === 0")
            asked = page.evaluate("asked")
    assert not [url for url in asked if "/v1/" in url or "inspect" in url]
    unasked = {url.rpartition("/")[2].split("?")[0] for url in asked[before:]}
    assert unasked == ({"runs", "records"} if most > 2 else {"runs"})
    assert 1 <= len(asked) - before <= most
