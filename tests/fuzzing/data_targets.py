"""Fuzz targets: prepared data, texts, tokenizers."""

import random
from pathlib import Path
from typing import Any

import numpy as np

import nanogpt_lite as ng
from fuzzing.fixtures import MODERN_OPTIONS, TEXT, write_text
from fuzzing.mutations import any_json, any_text, changed_json, damaged, damaged_json_file
from fuzzing.target import Snapshot, Target
from nanogpt_lite.data import verification
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.bpe import BPETokenizer, train_bpe
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.tokenizers.registry import tokenizer_from_json
from nanogpt_lite.tracking.records import EvalRecord, StepRecord

TOKENIZERS = ("char", "byte", "bpe-260")


class PreparedData(Target[tuple[str, str, bytes]]):
    """A prepared dataset with one damaged file: what is read from it are the tokens of the text, or it is refused.

    The damaged folder is given by its path, or the text is prepared again over it. Sometimes a training starts with it.
    """

    name, share = "prepared-data", 100

    def __init__(self) -> None:
        write_text()
        self.expected = {name: ng.prepare("bottles.txt", tokenizer=name, out_dir=name) for name in TOKENIZERS}
        self.ids = {name: (data.train.copy(), data.val.copy()) for name, data in self.expected.items()}
        self.losses = {name: losses_of_training(name) for name in TOKENIZERS}
        self.files = {name: Snapshot(Path(name)) for name in TOKENIZERS}

    def generate(self, rng: random.Random) -> tuple[str, str, bytes]:
        tokenizer = rng.choice(TOKENIZERS)
        file = rng.choice(self.files[tokenizer].names())
        change = damaged_json_file if file.endswith(".json") else damaged
        return tokenizer, file, change(rng, self.files[tokenizer].content(file))

    def run(self, example: tuple[str, str, bytes]) -> None:
        tokenizer, file, content = example
        self.files[tokenizer].restore({file: content})
        match len(content) % 8:
            case 0:
                assert losses_of_training(tokenizer) == self.losses[tokenizer]
                return
            case 1 | 2:
                data = ng.prepare("bottles.txt", tokenizer=tokenizer, out_dir=tokenizer)
            case _:
                data = ng.prepare(tokenizer)
        verification.verify_checksum(data)
        assert data.tokenizer.decode(data.train) + data.tokenizer.decode(data.val) == TEXT
        with verification.open_verified(data) as splits:
            for split, ids in zip(splits, self.ids[tokenizer], strict=True):
                assert np.array_equal(split[: len(split)], ids)


def losses_of_training(dataset: str) -> list[float]:
    """The losses of a training of one step. Its val loss is that of the whole split."""
    options = {**MODERN_OPTIONS, "max_iters": 1, "log_interval": 1, "out_dir": "run", "overwrite": True}
    records = list(ng.training(dataset, **options))
    return [
        record.val_loss if isinstance(record, EvalRecord) else record.loss
        for record in records
        if isinstance(record, EvalRecord | StepRecord)
    ]


class Texts(Target[tuple[str, bytes]]):
    """Any bytes as a text: it is prepared, and its tokens are the text; or it is refused."""

    name, share = "texts", 40

    def generate(self, rng: random.Random) -> tuple[str, bytes]:
        content = (any_text(rng) * rng.randint(1, 3) + any_text(rng)).encode("utf-8", "surrogatepass")
        if rng.random() < 0.3:
            content = damaged(rng, content)
        return rng.choice(TOKENIZERS), content

    def run(self, example: tuple[str, bytes]) -> None:
        tokenizer, content = example
        Path("any.txt").write_bytes(content)
        data = ng.prepare("any.txt", tokenizer=tokenizer, out_dir="any", overwrite=True)
        text = data.tokenizer.decode(data.train) + data.tokenizer.decode(data.val)
        assert text == content.decode("utf-8").removeprefix("\ufeff")


class TokenizerJson(Target[Any]):
    """Any JSON as a tokenizer: it is refused, or it decodes what it encodes."""

    name, share = "tokenizer-json", 70

    def __init__(self) -> None:
        pairs = train_bpe("bpe-300", [TEXT], 300).to_json()
        self.forms: list[Any] = [
            {"type": "byte"},
            {"type": "char", "chars": "".join(sorted(set(TEXT)))},
            {"type": "bpe-260", "merges": ["a b", "ab c", "c c"], "special": ["<end>"]},
            pairs,
        ]

    def generate(self, rng: random.Random) -> Any:
        return any_json(rng) if rng.random() < 0.1 else changed_json(rng, rng.choice(self.forms))

    def run(self, example: Any) -> None:
        tokenizer = tokenizer_from_json(example)
        assert tokenizer_from_json(tokenizer.to_json()).to_json() == tokenizer.to_json()
        assert tokenizer.decode(tokenizer.encode("a")) == "a"


class TokenizerRoundTrip(Target[tuple[str, str, list[int]]]):
    """Any text, cut anywhere: decoding gives the text back, and chunks give the tokens of the whole."""

    name, share = "tokenizer-round-trip", 110

    def __init__(self) -> None:
        self.tokenizers: dict[str, Tokenizer] = {
            "byte": ByteTokenizer(),
            "bpe": train_bpe("bpe-300", [TEXT], 300),
            "special": BPETokenizer("bpe-260", ["a a", "aa aa"], ["<|endoftext|>", "<|"]),
        }

    def generate(self, rng: random.Random) -> tuple[str, str, list[int]]:
        text = any_text(rng, 20)
        return rng.choice(["char", *self.tokenizers]), text, [rng.randint(0, 30) for _ in range(rng.randint(0, 9))]

    def run(self, example: tuple[str, str, list[int]]) -> None:
        name, text, sizes = example
        tokenizer = CharTokenizer("".join(sorted({*text, "\n"}))) if name == "char" else self.tokenizers[name]
        ids = tokenizer.encode(text)
        assert not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocab_size
        # only UTF-8 has no lone surrogates
        expected = text if name == "char" else text.encode("utf-8", "replace").decode()
        assert tokenizer.decode(ids) == expected
        encoder, decoder = tokenizer.encoder(), tokenizer.decoder()
        parts = [encoder.encode(chunk, final=False) for chunk in chunks(text, sizes)]
        parts.append(encoder.encode("", final=True))
        assert np.array_equal(np.concatenate(parts), ids)
        texts = [decoder.decode(ids[start:end]) for start, end in bounds(len(ids), sizes)]
        assert "".join([*texts, decoder.decode([], final=True)]) == expected


def bounds(length: int, sizes: list[int]) -> list[tuple[int, int]]:
    """The start and the end of parts with these sizes; the last part has the rest."""
    ends = [min(sum(sizes[:number]), length) for number in range(len(sizes) + 1)]
    return list(zip(ends, [*ends[1:], length], strict=True))


def chunks(text: str, sizes: list[int]) -> list[str]:
    """The text in chunks of these sizes, and a last one."""
    return [text[start:end] for start, end in bounds(len(text), sizes)]
