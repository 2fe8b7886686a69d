"""The goals of `any_text.py`, and its results as Markdown and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from harness import MAX_OTHER_LOAD
from parts import NGRAM, takes_longer
from settings import SETTINGS
from table import machine_line

NEAR = 0.03  # nats per token
LONG_TEXT = 200_000  # bytes

GOALS = {
    "nanogpt": "better than nanoGPT, in no more time",
    "settings": f"at most {NEAR} nats per token above the best of eight settings",
    "baselines": f"better than the 5-gram model and the compressor, if the text is longer than {LONG_TEXT // 1000} kB",
}
COLUMNS = {
    **{"text": "---", "kind": "---", "script": "---", "tokenizer": "---", "characters": "---:", "tokens": "---:"},
    **{
        "default": "---:",
        "alone": "---:",
        "s": "---:",
        "nanoGPT": "---:",
        "its s": "---:",
        "time": "---:",
        "goal 1": "---",
    },
    **{"in its time": "---:"},
    **{"best of eight": "---:", "setting": "---", "above it": "---:", "goal 2": "---"},
    **{"5-gram": "---:", "compressor": "---:", "goal 3": "---"},
}
NOTES = (
    "Losses are in nats per character of the val split; that of a training is of its best checkpoint. alone: that of "
    "the default's network without its n-gram expert, by the evaluations in training. s: seconds of the whole process. "
    "time: the default's relative to nanoGPT's. in its time: the default with as many steps as fit into nanoGPT's "
    "time, if it takes longer. above it: the default's loss less that of the best setting, in nats per token. "
    "compressor: the better one of lzma and bz2."
)
VERDICTS = {True: "met", False: "missed", None: ""}


@dataclass(frozen=True)
class Special:
    """A row with goals of its own: about Shakespeare, or about one of the texts as characters."""

    name: str
    text: str  # "shakespeare", or the name of one of the texts
    characters: int | None  # all, if None
    seeds: int
    best: float  # the highest val loss, of the mean over the seeds
    last_above_best: float | None = None  # by how much the last val loss may be higher than the best
    seconds: float | None = None  # of the slowest process
    in_nanogpt_time: bool = False  # whether the slowest process may take no longer than nanoGPT

    def met(self, runs: Sequence[Mapping[str, Any]], nanogpt: Mapping[str, Any] | None = None) -> bool | None:
        """Whether the runs reach all goals; None if that depends on a time that is not known.

        It is not if nanoGPT was not measured, whose time is the limit, or if other processes ran meanwhile.
        """
        best, last = (mean(run[name] for run in runs) for name in ("nats_per_token", "last_nats_per_token"))
        if best > self.best or (self.last_above_best is not None and last - best > self.last_above_best):
            return False
        if self.seconds is None and not self.in_nanogpt_time:
            return True
        timed = [*runs, *([nanogpt] if nanogpt else [])]
        if any(is_disturbed(run) for run in timed) or (self.in_nanogpt_time and nanogpt is None):
            return None
        seconds = max(run["seconds"] for run in runs)
        return (self.seconds is None or seconds <= self.seconds) and (nanogpt is None or seconds <= nanogpt["seconds"])

    def target(self) -> str:
        """The goals as text."""
        parts = [f"best ≤ {self.best:g}"]
        parts += [f"last ≤ best + {self.last_above_best:g}"] if self.last_above_best is not None else []
        parts += [f"≤ {self.seconds:g} s"] if self.seconds is not None else []
        parts += ["in nanoGPT's time"] if self.in_nanogpt_time else []
        return ", ".join(parts)


SPECIAL = (
    Special(
        "Shakespeare, the first 60,000 characters",
        "shakespeare",
        60_000,
        1,
        best=1.57,
        last_above_best=0.03,
        seconds=30,
    ),
    Special("Shakespeare", "shakespeare", None, 3, best=1.455, in_nanogpt_time=True),
    Special("Python sources (networkx), as characters", "python-networkx", None, 1, best=1.23, in_nanogpt_time=True),
)


def goals_met(row: Mapping[str, Any]) -> dict[str, bool | None]:
    """Whether a text reaches each goal; None if a part is not measured, or a time that decides is not reliable, or if
    the goal is not for this text.
    """
    met: dict[str, bool | None] = dict.fromkeys(GOALS)
    default = row.get("default")
    if default is None:
        return met
    if nanogpt := row.get("nanogpt"):
        if default["nats_per_character"] >= nanogpt["nats_per_character"]:
            met["nanogpt"] = False
        elif not (is_disturbed(default) or is_disturbed(nanogpt)):
            met["nanogpt"] = default["seconds"] <= nanogpt["seconds"]
    if "settings" in row:
        met["settings"] = above_best_setting(row) <= NEAR
    if "baselines" in row and row["bytes"] > LONG_TEXT:
        met["baselines"] = all(
            default["nats_per_character"] < b["nats_per_character"] for b in row["baselines"].values()
        )
    return met


def in_nanogpt_time(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The default if it takes no more time than nanoGPT, else the one with fewer steps; None if it is not measured."""
    if "default" not in row or "nanogpt" not in row:
        return None
    part: Mapping[str, Any] | None = row.get("limited") if takes_longer(row) else row["default"]
    return part


def is_better_in_nanogpt_time(row: Mapping[str, Any]) -> bool:
    """Whether the default, limited to nanoGPT's time if it takes longer, has the lower loss and took no longer."""
    part, nanogpt = in_nanogpt_time(row), row.get("nanogpt")
    if part is None or nanogpt is None:
        return False
    return bool(part["nats_per_character"] < nanogpt["nats_per_character"] and part["seconds"] <= nanogpt["seconds"])


def is_disturbed(training: Mapping[str, Any]) -> bool:
    """Whether other processes ran while a training was timed, so that the time is not reliable."""
    disturbed: bool = training["other_load"] > MAX_OTHER_LOAD
    return disturbed


def disturbed_names(report: Mapping[str, Any]) -> list[str]:
    """The rows of both tables of which a time is not reliable; a setting's time is not shown."""
    timed = {
        row["name"]: [row[part] for part in ("default", "nanogpt", "limited") if part in row]
        for row in by_size(report["rows"])
    }
    for name, measured in report["special"].items():
        timed[name] = [*measured["runs"], *([measured["nanogpt"]] if "nanogpt" in measured else [])]
    return [name for name, trainings in timed.items() if any(map(is_disturbed, trainings))]


def best_setting(row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The name and the result of the setting with the lowest loss."""
    results: Mapping[str, Mapping[str, Any]] = row["settings"]["results"]
    return min(results.items(), key=lambda item: item[1]["nats_per_token"])


def above_best_setting(row: Mapping[str, Any]) -> float:
    """The default's loss less that of the best setting, in nats per token."""
    difference: float = row["default"]["nats_per_token"] - best_setting(row)[1]["nats_per_token"]
    return difference


def time_shares(row: Mapping[str, Any]) -> list[float]:
    """The time of each setting, relative to the default's, if no other process ran meanwhile."""
    results = row["settings"]["results"].values() if "settings" in row else []
    return [result["seconds"] / row["default"]["seconds"] for result in results if not is_disturbed(result)]


def compared_losses(row: Mapping[str, Any]) -> dict[str, float]:
    """What the default is compared with, and its loss in nats per character."""
    losses = {"nanoGPT": row["nanogpt"]} if "nanogpt" in row else {}
    if "settings" in row:
        losses["best of eight"] = best_setting(row)[1]
    if baselines := row.get("baselines"):
        compressors = [loss for name, loss in baselines.items() if name != NGRAM]
        losses["5-gram"] = baselines[NGRAM]
        losses["compressor"] = min(compressors, key=lambda loss: loss["nats_per_character"])
    return {name: loss["nats_per_character"] for name, loss in losses.items()}


def markdown(report: Mapping[str, Any]) -> str:
    """Both tables, of the texts and of Shakespeare, and how often each goal is met."""
    lines = [machine_line(dict(report)), ""]
    rows = by_size(report["rows"])
    if rows:
        lines += [f"| {' | '.join(COLUMNS)} |", f"|{'|'.join(COLUMNS.values())}|"]
        lines += [f"| {' | '.join(cells(row))} |" for row in rows]
        lines += ["", NOTES, ""]
        for number, (goal, title) in enumerate(GOALS.items(), 1):
            verdicts = [met for met in (goals_met(row)[goal] for row in rows) if met is not None]
            lines.append(f"- goal {number}, {title}: {sum(verdicts)} of {len(verdicts)} texts")
        lines += alone_lines(rows)
        timed = [row for row in rows if (part := in_nanogpt_time(row)) and not is_disturbed(part)]
        if better := [is_better_in_nanogpt_time(row) for row in timed if not is_disturbed(row["nanogpt"])]:
            lines += [
                "",
                f"In nanoGPT's time, the default is better than nanoGPT on {sum(better)} of {len(better)} texts.",
            ]
        if limits := [row["limited"]["seconds"] / row["nanogpt"]["seconds"] for row in rows if "limited" in row]:
            several = f"{min(limits):.2f} to " if len(limits) > 1 else ""
            lines[-1] += f" What is limited took {several}{max(limits):.2f} of its time."
        if shares := [share for row in rows for share in time_shares(row)]:
            undisturbed = "where no other process ran meanwhile"
            lines += [
                "",
                f"A setting took {min(shares):.2f} to {max(shares):.2f} of the default's time, {undisturbed}.",
            ]
        lines.append("")
    if report["special"]:
        lines += ["| text | seeds | best val loss | last val loss | s | nanoGPT | its s | goals | |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---|---|"]
        lines += [special_line(special, report["special"]) for special in SPECIAL if special.name in report["special"]]
        lines += ["", "Losses in nats per character, means over the seeds; s: seconds of the slowest process.", ""]
    if disturbed := disturbed_names(report):
        lines += [f"Other processes ran while these were timed: {'; '.join(disturbed)}.", ""]
    if commits := sorted({part["commit"] for part in trained_parts(report)}):
        lines.append(f"Commits of nanogpt_lite: {', '.join(commits)}.")
    return "\n".join(lines).rstrip("\n") + "\n"


def cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of a text; empty where a part is not measured."""
    default, nanogpt = row.get("default"), row.get("nanogpt")
    losses = {name: f"{loss:.4f}" for name, loss in compared_losses(row).items()}
    verdicts = [VERDICTS[met] for met in goals_met(row).values()]
    has_both = default is not None and "settings" in row
    alone = default and network_loss(default)
    ratio = f"{default['seconds'] / nanogpt['seconds']:.2f}" if default and nanogpt else ""
    return [
        *(row["name"], row["kind"], row["script"], row["tokenizer"]),
        *(f"{row['characters']:,}", f"{row['train_tokens'] + row['val_tokens']:,}"),
        *(
            (f"{default['nats_per_character']:.4f}", f"{alone:.4f}" if alone else "", f"{default['seconds']:.1f}")
            if default
            else [""] * 3
        ),
        *(losses.get("nanoGPT", ""), f"{nanogpt['seconds']:.1f}" if nanogpt else "", ratio, verdicts[0]),
        f"{row['limited']['nats_per_character']:.4f}" if "limited" in row else "",
        *(losses.get("best of eight", ""), best_setting(row)[0] if "settings" in row else ""),
        *(f"{above_best_setting(row):+.4f}" if has_both else "", verdicts[1]),
        *(losses.get("5-gram", ""), losses.get("compressor", ""), verdicts[2]),
    ]


def network_loss(run: Mapping[str, Any]) -> float | None:
    """The loss of the network alone, in nats per character; None if it is not known."""
    nats: float | None = run.get("network_nats_per_token")
    return nats * run["nats_per_character"] / run["nats_per_token"] if nats else None


def alone_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """On how many texts the network without its n-gram expert is better than nanoGPT, and than the 5-gram model."""
    lines = []
    for name in ("nanoGPT", "5-gram"):
        pairs = [
            (alone, compared_losses(row)[name])
            for row in rows
            if "default" in row and (alone := network_loss(row["default"])) and name in compared_losses(row)
        ]
        if pairs:
            better = sum(alone < compared for alone, compared in pairs)
            what = "nanoGPT" if name == "nanoGPT" else "the 5-gram model"
            lines.append(f"- the default's network alone is better than {what}: {better} of {len(pairs)} texts")
    return lines


def special_line(special: Special, measured: Mapping[str, Any]) -> str:
    """A row about Shakespeare."""
    runs, nanogpt = measured[special.name]["runs"], measured[special.name].get("nanogpt")
    losses = [f"{mean(run[name] for run in runs):.4f}" for name in ("nats_per_token", "last_nats_per_token")]
    seconds = f"{max(run['seconds'] for run in runs):.1f}"
    theirs = [f"{nanogpt['nats_per_token']:.4f}", f"{nanogpt['seconds']:.1f}"] if nanogpt else ["", ""]
    met = VERDICTS[special.met(runs, nanogpt)]
    texts = [special.name, str(len(runs)), *losses, seconds, *theirs, special.target(), met]
    return f"| {' | '.join(texts)} |"


def trained_parts(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts that nanogpt_lite trained."""
    parts = [row[part] for row in report["rows"] for part in ("default", "limited", "settings") if part in row]
    return [*parts, *report["special"].values()]


def by_size(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The texts, the shortest first."""
    return sorted(rows, key=lambda row: (row["bytes"], row["name"]))


def save_plot(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture: what each text's loss is elsewhere, relative to the default's. Nothing if there is none."""
    from matplotlib.figure import Figure

    rows = [row for row in by_size(report["rows"]) if "default" in row and compared_losses(row)]
    if not rows:
        return
    figure = Figure(figsize=(8, 1.6 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    markers = {"nanoGPT": "s", "best of eight": "D", "5-gram": "^", "compressor": "o"}
    for name, marker in markers.items():
        points = [
            (compared_losses(row)[name] / row["default"]["nats_per_character"], position)
            for position, row in enumerate(rows)
            if name in compared_losses(row)
        ]
        if points:
            ratios, positions = zip(*points, strict=True)
            label = f"best of {len(SETTINGS)} settings, each in the default's time" if name == "best of eight" else name
            axes.scatter(ratios, positions, marker=marker, s=28, label=label, zorder=3, alpha=0.85)
    axes.axvline(1, color="black", linewidth=1, zorder=2)
    axes.set_yticks(range(len(rows)), [f"{row['name']}, {row['bytes'] / 1000:,.0f} kB" for row in rows])
    axes.invert_yaxis()  # the shortest text at the top
    axes.grid(axis="y", linewidth=0.4, color="lightgray")
    machine = report["machine"]
    figure.supxlabel(
        "val loss per character, relative to the default's; right of the line, the default is better\n"
        f"({machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads)",
        fontsize="medium",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
