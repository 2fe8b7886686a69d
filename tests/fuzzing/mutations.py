"""Damaged bytes, changed JSON, unusual values and hard texts, all from a `random.Random`: its seed repeats them."""

import copy
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hard_texts import HARD_TEXTS

EXECUTED = Path("executed")  # created in the current folder by the pickle below, if it is loaded
UNUSUAL: list[Any] = [
    *(0, -1, 1, 2, 255, 256, 2**16, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30),
    *(0.0, -0.0, 0.5, 1e-320, 1e-30, 1e30, 1e308, -1e308),
    *("", "\0", "\ud800", "é" * 300, "a" * 5000, "../x", ".", "nan", "char", "byte", "bpe-260", "<|endoftext|>"),
    *([], {}, [[]], None, True, False),
]
JSON_TEXTS = [
    *(b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000),
    *(b'{"a": 1, "a": 2}', b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"null", b'"\\ud800"', b"{} {}"),
]
WORDS = [
    "the ",
    "\n",
    "  ",
    "a",
    "Z",
    "0",
    "-",
    ".",
    "<|endoftext|>",
    "green bottles",
    "'s",
    "\t",
    "\r\n",
    "\x85",
    "%s",
]


class MaliciousPickle:
    """Creates the file `EXECUTED` when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (EXECUTED,)


def any_text(rng: random.Random, max_parts: int = 9) -> str:
    """A text of words, hard characters and any code points, lone surrogates too; it may be empty."""
    parts = []
    for _ in range(rng.randint(0, max_parts)):
        kind = rng.random()
        if kind < 0.6:
            parts.append(rng.choice(WORDS))
        elif kind < 0.8:
            parts.append(rng.choice(HARD_TEXTS))
        else:
            parts.append(chr(rng.choice([rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x110000)])))
    return "".join(parts)


def any_json(rng: random.Random, depth: int = 2) -> Any:
    """A JSON value without NaN and infinities, nested up to `depth` times."""
    kind = rng.random()
    if depth and kind < 0.1:
        return [any_json(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    if depth and kind < 0.2:
        return {any_text(rng, 2): any_json(rng, depth - 1) for _ in range(rng.randint(0, 3))}
    if kind < 0.7:
        return copy.deepcopy(rng.choice(UNUSUAL))
    return rng.choice([rng.randint(-300, 300), rng.uniform(-2, 2), rng.gauss(0, 1e6), any_text(rng, 3)])


def damaged(rng: random.Random, content: bytes) -> bytes:
    """The bytes with one to three parts changed, missing, doubled or inserted, or entirely other bytes."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randint(0, 200))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        start = rng.randint(0, len(content))
        end = min(start + rng.choice([0, 1, 1, 2, 8, 100, len(content)]), len(content))
        content = content[:start] + _replacement(rng, content[start:end]) + content[end:]
    return content


def _replacement(rng: random.Random, part: bytes) -> bytes:
    match rng.randrange(6):
        case 0 if part:  # a flipped bit
            position = rng.randrange(len(part))
            return part[:position] + bytes([part[position] ^ 1 << rng.randrange(8)]) + part[position + 1 :]
        case 1:
            return b""
        case 2:
            return part * rng.choice([2, 3])
        case 3:
            return bytes([rng.choice([0, 0x7F, 0x80, 0xFF])]) * max(len(part), 1)
        case 4 if rng.random() < 0.2:
            return pickle.dumps(MaliciousPickle())
    return rng.randbytes(rng.randint(1, 12))


def changed_json(rng: random.Random, value: Any) -> Any:
    """The value with one or two parts, at any depth, replaced, missing, added, or under another key.

    The value is a list or dict, and consists of these; the leaves may be anything.
    """
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2])):
        _change_part(rng, value, other=value)
    return value


def _change_part(rng: random.Random, parent: Any, other: Any) -> None:
    while parent:
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
        child = parent[key]
        if not (isinstance(child, dict | list) and child) or rng.random() < 0.25:
            break
        parent = child
    else:  # an empty list or dict
        return
    match rng.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[any_text(rng, 2)] = parent.pop(key)
        case 2 if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(child))
        case 2:
            parent[any_text(rng, 2)] = any_json(rng)
        case 3 | 4:
            parent[key] = _similar(rng, child)
        case 5:
            parent[key] = _some_part(rng, other)
        case _:
            parent[key] = any_json(rng)


def _similar(rng: random.Random, leaf: Any) -> Any:
    """A value of nearly the same kind: the next number, the number as text, a changed text."""
    match leaf:
        case bool():
            return rng.choice([not leaf, int(leaf), str(leaf)])
        case int():
            return rng.choice([leaf + 1, leaf - 1, -leaf, leaf * 2, leaf * 1000, float(leaf), str(leaf)])
        case float():
            return rng.choice([leaf * 2 if abs(leaf) < 1e300 else 0.0, -leaf, leaf / 3, leaf * 1e-30, str(leaf)])
        case str():
            position = rng.randint(0, len(leaf))
            return leaf[:position] + any_text(rng, 2) + leaf[position + rng.randint(0, 2) :]
    return any_json(rng)


def _some_part(rng: random.Random, value: Any) -> Any:
    """A copy of a part of the value, at any depth."""
    while isinstance(value, dict | list) and value and rng.random() < 0.8:
        value = rng.choice(list(value.values() if isinstance(value, dict) else value))
    return copy.deepcopy(value)


def damaged_json_file(rng: random.Random, content: bytes) -> bytes:
    """A JSON file with a part of its value changed, or damaged bytes, or an unusual text."""
    kind = rng.random()
    if kind < 0.65:
        return json.dumps(changed_json(rng, json.loads(content)), ensure_ascii=rng.random() < 0.8).encode(
            "utf-8", "surrogatepass"
        )
    return damaged(rng, content) if kind < 0.95 else rng.choice(JSON_TEXTS)
