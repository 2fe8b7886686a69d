"""The default recipe on any text, compared with nanoGPT, eight other settings, a 5-gram model and a compressor.

    python benchmarks/texts.py --out texts
    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/any_text.py --folder texts --nanogpt nanoGPT
    python benchmarks/any_text.py --folder texts --nanogpt nanoGPT --special    # Shakespeare, Python as characters

Each text is measured in parts:

- default: `nanogpt-lite train --dataset FOLDER --device cpu`,
- nanogpt: nanoGPT's recipe for a CPU, on the same tokens; the checkpoint that it keeps, over the whole val split,
- limited: the default with as many steps as fit into nanoGPT's time, if it takes longer,
- settings: eight other settings, each in the default's time (see `settings`),
- baselines: what trains no network (see `baselines`).

A loss of a training is that of its best checkpoint, and a time that of the whole process; the text is prepared before.
The parts that OUT.json has already are not measured again, unless the text or the options of the default have changed;
nanoGPT is also measured again after the default, so that their times are of the same hour. So a benchmark that was
stopped goes on; `--again` measures all. Run nothing else on the machine meanwhile.
"""

import argparse
import hashlib
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from any_text_table import SPECIAL, Special, markdown, save_plot
from harness import require_clone
from parts import (
    PreparedText,
    measure_baselines,
    measure_default,
    measure_limited,
    measure_nanogpt,
    measure_settings,
    prepare_text,
    read_recipe,
    start_default,
    takes_longer,
)
from settings import SETTINGS, changed_options
from table import commit_of, describe_environment, exit_status, save
from texts import TEXTS, split

import nanogpt_lite as ng
from nanogpt_lite.config.schema import require_known
from nanogpt_lite.data import sources
from nanogpt_lite.device import devices

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "any_text"
PARTS = ("default", "nanogpt", "limited", "settings", "baselines")  # in this order: some need earlier ones
SPLITS = ("test", "tuning", "all")
FACTS = ("name", "kind", "script", "size", "tokenizer", "split", "bytes", "characters", "sha256")  # of texts.json


def main() -> int:
    """Run the benchmark; returns the exit status."""
    return exit_status(lambda: measure(parse_arguments()))


def parse_arguments() -> argparse.Namespace:
    """The command line. `UserError` for invalid values."""
    parser = argparse.ArgumentParser(description="The default recipe on many texts.", allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("texts"), help="the OUT of texts.py (default: %(default)s)")
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT, which is not changed")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which texts (default: %(default)s)")
    parser.add_argument("--texts", help="texts by name, separated by commas, instead of --split")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure (default: %(default)s)")
    parser.add_argument("--special", action="store_true", help="measure the rows about Shakespeare instead")
    parser.add_argument("--threads", type=int, default=0, help="of both programs (default: as PyTorch has)")
    parser.add_argument("--again", action="store_true", help="measure also what OUT.json has already")
    parser.add_argument("--out", type=Path, default=OUT, help="write OUT.json, OUT.md and OUT.png")
    args = parser.parse_args()
    args.only = args.only.split(",")
    require_known(args.only, PARTS, "part for --only")
    args.only = [part for part in PARTS if part in args.only]
    if args.threads < 0:
        raise ng.UserError(f"--threads is {args.threads}; it must be 0 or more")
    if args.nanogpt:
        require_clone(args.nanogpt)
    elif "nanogpt" in args.only and not args.special:
        raise ng.UserError("--nanogpt is missing; give a clone of nanoGPT, or leave nanogpt out of --only")
    return args


def measure(args: argparse.Namespace) -> None:
    """Measure the selected texts, or the rows about Shakespeare; save and print the tables."""
    report = open_report(args)
    if args.special:
        for special in SPECIAL:
            measure_special(report, special, read_special(special, args.folder)[: special.characters], args)
    else:
        for facts in select_texts(args):
            measure_text(report, facts, args)
    save_report(report, args)
    save_plot(report, args.out.with_name(f"{args.out.name}.png"))
    print(markdown(report), end="")


def select_texts(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What texts.json says about the selected texts."""
    path = args.folder / "texts.json"
    if not path.is_file():
        raise ng.UserError(f"there is no {path}; run python benchmarks/texts.py --out {args.folder}")
    listed = {facts["name"]: facts for facts in json.loads(path.read_text(encoding="utf-8"))["texts"]}
    if not args.texts:
        return [facts for facts in listed.values() if args.split in ("all", facts["split"])]
    for name in args.texts.split(","):
        if name not in listed:
            raise ng.UserError(f"--texts has {name!r}, which is not in {path}; give some of {','.join(listed)}")
    return [listed[name] for name in args.texts.split(",")]


def open_report(args: argparse.Namespace) -> dict[str, Any]:
    """The report to continue, or a new one. `UserError` if it is from another machine or from other versions."""
    report = {**describe_environment("", args.nanogpt, threads=args.threads), "rows": [], "special": {}}
    path = args.out.with_name(f"{args.out.name}.json")
    if not path.is_file():
        return report
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    versions = {**saved["versions"], **report["versions"]}  # one may be without nanoGPT
    changed = [name for name, version in saved["versions"].items() if version != versions[name]]
    if changed or saved["machine"] != report["machine"]:
        what = f"another version of {changed[0]}" if changed else "another machine or number of threads"
        raise ng.UserError(f"{path} was measured with {what}; give another --out, or remove it to measure all again")
    return {**saved, "versions": versions}


def measure_text(report: dict[str, Any], facts: dict[str, Any], args: argparse.Namespace) -> None:
    """Measure the parts of a text that the report does not have, and save the report after each."""
    content = (args.folder / f"{facts['name']}.txt").read_bytes()
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise ng.UserError(f"{facts['name']}.txt in {args.folder} was changed; make it again with texts.py")
    with tempfile.TemporaryDirectory(prefix="any_text_") as folder:
        text = prepare_text(content.decode(), facts["tokenizer"], Path(folder), devices.resolve_threads(args.threads))
        row = find_row(report, {**{name: facts[name] for name in FACTS}, **text.sizes})
        config = start_default(text)
        measured_now = set()
        for part in args.only:
            is_paired = part == "nanogpt" and "default" in measured_now
            if not args.again and not is_paired and is_current(row, part, read_recipe(config)):
                print(f"{facts['name']}, {part}: measured before", file=sys.stderr)
                continue
            if part == "limited" and not takes_longer(row):
                row.pop(part, None)
                continue
            print(f"{facts['name']}, {part}", file=sys.stderr)
            row[part] = measure_part(text, part, row, config, args)
            measured_now.add(part)
            save_report(report, args)


def measure_part(
    text: PreparedText, part: str, row: dict[str, Any], config: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Measure a part of a text. `config` is the config.json of the default recipe."""
    if part == "nanogpt":
        return measure_nanogpt(text, args.nanogpt)
    if part == "baselines":
        return measure_baselines(text)
    if part == "default":
        measured = measure_default(text)
    else:
        if not is_current(row, "default", read_recipe(config)):
            raise ng.UserError(f"{part} needs the default's steps, which are not known; add default to --only")
        measured = measure_limited(text, row) if part == "limited" else measure_settings(text, config, row["default"])
    return {"commit": commit_of(ROOT), **measured}


def is_current(row: dict[str, Any], part: str, recipe: dict[str, Any]) -> bool:
    """Whether a row has a part, of this recipe if it depends on it."""
    if part not in row or part in ("nanogpt", "baselines"):
        return part in row
    grid = {name: changed_options(name, recipe) for name in SETTINGS}
    same_grid = part != "settings" or grid == {name: r["changed"] for name, r in row[part]["results"].items()}
    return same_grid and bool(row[part]["recipe"] == recipe)


def find_row(report: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The row of a text in the report; a new one replaces that of another text of this name."""
    rows = {row["name"]: row for row in report["rows"]}
    row: dict[str, Any] = rows.get(facts["name"], {})
    if any(row.get(name) != value for name, value in facts.items()):
        row = facts
    report["rows"] = [*({**rows, row["name"]: row}).values()]
    return row


def read_special(special: Special, folder: Path) -> str:
    """The text of a row with goals of its own. `UserError` if it is not in the folder."""
    if special.text == "shakespeare":
        return "".join(sources.find_source("shakespeare_char").read_chunks())
    path = folder / f"{special.text}.txt"
    if not path.is_file():
        raise ng.UserError(f"there is no {path}; run python benchmarks/texts.py --out {folder}")
    return path.read_text(encoding="utf-8")


def measure_special(report: dict[str, Any], special: Special, content: str, args: argparse.Namespace) -> None:
    """Train on a text by the default recipe with each seed, and nanoGPT, if its time is the limit."""
    with tempfile.TemporaryDirectory(prefix="any_text_") as folder:
        text = prepare_text(content, "char", Path(folder), devices.resolve_threads(args.threads))
        recipe = read_recipe(start_default(text))
        measured = report["special"].get(special.name, {})
        is_compared = "nanogpt" in measured or not special.in_nanogpt_time or not args.nanogpt
        has_runs = measured.get("recipe") == recipe and len(measured["runs"]) == special.seeds
        if not args.again and has_runs and is_compared:
            print(f"{special.name}: measured before", file=sys.stderr)
            return
        print(special.name, file=sys.stderr)
        first = ng.TrainConfig.seed
        runs = [measure_default(text, seed=seed) for seed in range(first, first + special.seeds)]
        nanogpt = {"nanogpt": measure_nanogpt(text, args.nanogpt)} if special.in_nanogpt_time and args.nanogpt else {}
    for run in runs:
        del run["recipe"]  # they differ in the seed only
    report["special"][special.name] = {"commit": commit_of(ROOT), "recipe": recipe, "runs": runs, **nanogpt}
    save_report(report, args)


def save_report(report: dict[str, Any], args: argparse.Namespace) -> None:
    """Write OUT.json and OUT.md, with the command that measures what they hold."""
    report["command"] = command_of(report, args)
    save(report, markdown(report), args.out)


def command_of(report: dict[str, Any], args: argparse.Namespace) -> str:
    """The commands that measure all of a report, however many calls it took."""
    program, commands = ["python", "benchmarks/any_text.py"], []
    threads = ["--threads", str(args.threads)] if args.threads else []
    if rows := report["rows"]:
        parts = [part for part in PARTS if any(part in row for row in rows)]
        clone = ["--nanogpt", "nanoGPT"] if "nanogpt" in parts else []
        only = ["--only", ",".join(parts)] if parts != list(PARTS) else []
        commands.append([*program, "--folder", "texts", *clone, *texts_option(rows), *only, *threads])
    if report["special"]:
        is_compared = any("nanogpt" in measured for measured in report["special"].values())
        compared = ["--folder", "texts", "--nanogpt", "nanoGPT"] if is_compared else []
        commands.append([*program, *compared, "--special", *threads])
    return " && ".join(map(shlex.join, commands))


def texts_option(rows: list[dict[str, Any]]) -> list[str]:
    """The option that selects the texts of a report."""
    names, splits = {row["name"] for row in rows}, split(TEXTS)
    for choice in SPLITS:
        if names == {name for name, half in splits.items() if choice in ("all", half)}:
            return [] if choice == "test" else ["--split", choice]
    return ["--texts", ",".join(sorted(names))]


if __name__ == "__main__":
    sys.exit(main())
