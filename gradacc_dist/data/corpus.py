"""The embedded corpus: the Python standard library's own source and language reference.

Every machine that can run this package has it, so a first run needs no download. A pair asks for
the docstring of a function or class; a text is a piece of the language reference. Lengths have a
long tail, as real data has: exactly what unequal numbers of supervised tokens are tested with.

The library's files are parsed, never imported. Same Python build, same rows in the same order,
whatever the locale or hash seed; `fingerprint` tells builds apart. Imports the standard library
only.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from gradacc_dist.errors import DataError

Split = Literal["train", "evaluate"]
Row = dict[str, str]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

SPLITS: Final[tuple[Split, ...]] = ("train", "evaluate")

SEPARATOR: Final = "\n\n# Docstring:\n"
"""Ends each prompt. A comment, so that the whole prompt is still Python."""

FORMAT_VERSION: Final = 2
"""Raise it with any change to what the rows are, so that caches made of older rows are left."""

MIN_COMPLETION_CHARACTERS: Final = 20
# The corpus serves small models and short runs: some 400 tokens of source leave room for the
# docstring within the demo's max_length. Docstrings keep their whole tail.
MAX_PROMPT_CHARACTERS: Final = 1200
# Names in capitals are some two characters to a token: a table of constants would leave no room.
MAX_CAPITALS: Final = 0.5
MAX_TOPIC_CHARACTERS: Final = 1200
HELD_OUT_ONE_IN: Final = 40

# Tests, tools whose text is mostly tests or menus, tables, and what others installed.
SKIPPED_FOLDERS: Final = frozenset(
    (
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "lib2to3",
        "ensurepip",
        "encodings",
        "site-packages",
        "dist-packages",
        "__pycache__",
    )
)
TOPICS_FILE: Final = "pydoc_data/topics.py"


LeftOut = Literal["unreadable_files", "short", "long", "capitals", "not_utf8", "duplicate"]


@dataclass(frozen=True)
class Corpus:
    """The rows of both splits, how many files they are from, and how much was left out and why.

    `left_out` counts files that are not UTF-8 or that this Python cannot parse, and definitions:
    docstring missing or short, prompt long or mostly in capitals, docstring not writable as UTF-8
    (a lone surrogate), or the same pair seen before.
    """

    train: tuple[Row, ...]
    evaluate: tuple[Row, ...]
    num_files: int
    left_out: dict[LeftOut, int]


def rows(split: Split) -> list[Row]:
    """Return the rows of one split, pairs first, then topics; the caller may change them freely.

    A pair is `{"prompt", "completion"}`, a topic `{"text"}`. The first call in a process takes
    seconds. Raises DataError where Python came without its source files.
    """
    assert split in SPLITS, f"split is {split!r}; legal: {', '.join(SPLITS)}"
    corpus = build()
    chosen = corpus.train if split == "train" else corpus.evaluate
    return [dict(row) for row in chosen]


def fingerprint() -> str:
    """Identify the rows without building them: a readable version and a hash of the sources.

    The version alone would not do: distributions ship the same Python with some modules removed
    or patched.
    """
    library = _library_folder()
    digest = hashlib.sha256()
    for path in _source_files(library):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(library).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    version = f"{platform.python_implementation().lower()}-{platform.python_version()}"
    return f"{version}-corpus{FORMAT_VERSION}-{digest.hexdigest()[:16]}"


@functools.cache
def build() -> Corpus:
    """Parse the standard library into rows, once per process."""
    library = _library_folder()
    paths = _source_files(library)
    left_out = dict.fromkeys(get_args(LeftOut), 0)
    pairs = _unique((pair for path in paths for pair in _pairs(path, left_out)), left_out)
    if not pairs:
        raise DataError(
            f"the embedded corpus is made of Python's own source files, and {library} holds none "
            f"of use ({len(paths)} files); set data.train to the path of a JSONL file, or use a "
            "Python that ships its sources"
        )
    train = [pair for pair in pairs if not _is_held_out(pair["completion"])]
    evaluate = [pair for pair in pairs if _is_held_out(pair["completion"])]
    return Corpus(
        train=(*train, *_topics(library / TOPICS_FILE)),
        evaluate=tuple(evaluate),
        num_files=len(paths),
        left_out=left_out,
    )


def _library_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _source_files(library: Path) -> list[Path]:
    """List the library's own files, sorted by path parts (not by locale or folder order).

    `sys.stdlib_module_names` leaves out what lies in the folder but belongs to the machine:
    `_sysconfigdata_*`, `sitecustomize`, `config-*`, and site-packages before it is walked.
    """
    found: list[Path] = []
    for entry in library.iterdir() if library.is_dir() else ():
        if entry.name.removesuffix(".py") in sys.stdlib_module_names:
            found.extend(entry.rglob("*.py") if entry.is_dir() else [entry])
    return sorted(
        (path for path in found if SKIPPED_FOLDERS.isdisjoint(path.relative_to(library).parts)),
        key=lambda path: path.relative_to(library).parts,
    )


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        # The library's own invalid escapes are not this run's warnings.
        warnings.simplefilter("ignore")
        return ast.parse(text)


def _pairs(path: Path, left_out: dict[LeftOut, int]) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8")
        tree = _parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):  # ValueError: a NUL character
        left_out["unreadable_files"] += 1
        return
    # Not splitlines(): it also splits at form feeds, where ast counts no line.
    lines = text.split("\n")
    for definition in _definitions(tree):
        docstring = ast.get_docstring(definition, clean=False)
        completion = inspect.cleandoc(docstring).rstrip() if docstring else ""
        if len(completion) < MIN_COMPLETION_CHARACTERS:
            left_out["short"] += 1
            continue
        prompt = _source_without_docstrings(definition, lines) + SEPARATOR
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            left_out["long"] += 1
        elif _share_of_capitals(prompt) > MAX_CAPITALS:
            left_out["capitals"] += 1
        elif _has_surrogate(completion):
            left_out["not_utf8"] += 1
        else:
            yield {"prompt": prompt, "completion": completion}


def _definitions(parent: ast.AST) -> Iterator[Definition]:
    """Yield functions and classes in source order, parents first; enters statements only."""
    for child in ast.iter_child_nodes(parent):
        if isinstance(child, ast.expr):
            continue
        if isinstance(child, Definition):
            yield child
        yield from _definitions(child)


def _source_without_docstrings(definition: Definition, lines: list[str]) -> str:
    """Return the definition's source, dedented, without its docstring nor those inside it.

    A method's docstring may be held out while its class is in the training split: left in, the
    held-out text would be read in a training prompt.
    """
    first = min(node.lineno for node in (definition, *definition.decorator_list)) - 1
    kept = lines[first : definition.end_lineno]
    # From the last on, so that earlier line numbers stay right.
    for inner in reversed([definition, *_definitions(definition)]):
        if ast.get_docstring(inner, clean=False) is not None:
            _cut_docstring(inner, kept, first)
    indent = lines[first][: len(lines[first]) - len(lines[first].lstrip(" \t"))]
    return "\n".join(line.removeprefix(indent).rstrip() for line in kept).strip("\n")


def _cut_docstring(definition: Definition, lines: list[str], first: int) -> None:
    """Remove the docstring from `lines`, whose first one is line `first` (from 0) of the file."""
    docstring = definition.body[0]
    assert docstring.end_lineno is not None, "ast gives statements an end"
    assert docstring.end_col_offset is not None, "ast gives statements an end"
    start, end = docstring.lineno - 1 - first, docstring.end_lineno - 1 - first
    # Columns are counted in UTF-8 bytes.
    before = lines[start].encode()[: docstring.col_offset].decode()
    after = lines[end].encode()[docstring.end_col_offset :].decode().lstrip(" \t;")
    if len(definition.body) == 1:
        after = f"pass  {after}" if after else "pass"  # a body cannot be empty
    replacement = before + after
    lines[start : end + 1] = [replacement] if replacement.strip() else []


def _share_of_capitals(text: str) -> float:
    """Of the letters, how many are capitals."""
    letters = [character for character in text if character.isalpha()]
    return sum(map(str.isupper, letters)) / max(len(letters), 1)


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _unique(pairs: Iterator[Row], left_out: dict[LeftOut, int]) -> list[Row]:
    unique: dict[tuple[str, str], Row] = {}
    for pair in pairs:
        key = (pair["prompt"], pair["completion"])
        left_out["duplicate"] += key in unique
        unique.setdefault(key, pair)
    return list(unique.values())


def _is_held_out(completion: str) -> bool:
    """Choose by the docstring alone, so that two functions that share one share its split."""
    digest = hashlib.sha256(completion.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def _topics(path: Path) -> list[Row]:
    """Read the language reference's topics from a `topics = {name: text}` file, if it is there."""
    if not path.is_file():
        return []  # Some distributions package pydoc's data apart.
    for statement in _parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            return [
                {"text": f"{name}\n\n{piece}\n"}
                for name, text in sorted(topics.items())
                for piece in _pieces(text.strip())
            ]
    return []


def _pieces(text: str) -> Iterator[str]:
    """Cut at paragraphs into pieces of at most MAX_TOPIC_CHARACTERS, longer paragraphs whole."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > MAX_TOPIC_CHARACTERS:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    yield piece
