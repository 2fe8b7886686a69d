"""Whether the tokens on disk are still the text that was prepared: before a run, and while it reads them."""

import hashlib

from nanogpt_lite.datasets import Dataset, stamps_of
from nanogpt_lite.download import Report
from nanogpt_lite.errors import UserError


def require_intact(dataset: Dataset, report: Report | None = None) -> None:
    """`UserError` unless the tokens of a prepared text are still that text: all of them are read."""
    digest, decoder, done = hashlib.sha256(), dataset.tokenizer.decoder(), 0
    for ids in dataset.read():
        if int(ids.max()) < dataset.tokenizer.vocab_size:  # else it is missing below
            digest.update(decoder.decode(ids).encode("utf-8", errors="surrogatepass"))
        done += ids.nbytes
        if report:
            report("check", done, dataset.train.nbytes + dataset.val.nbytes)
    digest.update(decoder.decode([], final=True).encode())
    if digest.hexdigest() != dataset.sha256:
        raise _changed(dataset)


class Guard:
    """Sees it when somebody changes the token files in place that a run reads as it goes."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset, self._stamps = dataset, dataset.stamps

    def require_unchanged(self) -> None:
        """`UserError` if a file holds other tokens now. Of one that was replaced, a run goes on to read the old one."""
        try:
            now = stamps_of(self._dataset.path)
        except OSError:  # without a name a file is still there for who has it open
            return
        # a file that was put in its place is none that the run reads
        ours = [after[0] == opened[0] for opened, after in zip(self._dataset.stamps, now, strict=True)]
        changed = [n for n, own in enumerate(ours) if own and now[n] != self._stamps[n]]
        if any(now[n][1] < self._dataset.stamps[n][1] for n in changed):
            raise _changed(self._dataset)  # not read: the system kills who reads beyond the end
        if changed:
            require_intact(self._dataset)
            self._stamps = now


def _changed(dataset: Dataset) -> UserError:
    text = "…" if dataset.asked == str(dataset.path) else dataset.asked
    return UserError(
        f"the tokens in {dataset.path} are not those of the text that was prepared there: a file is damaged, or was "
        f"changed; prepare the text again: nanogpt-lite prepare --dataset {text} --out_dir {dataset.path} --overwrite"
    )
