from __future__ import annotations

import ast
import inspect
import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from gradacc_dist.data import corpus
from gradacc_dist.errors import DataError

ROOT = Path(__file__).parents[2]
DOCSTRING = "Say something of at least twenty characters."

# Which of "Return the number 0 as text.", 1, ... are held out: found once, never to change.
HELD_OUT = [5, 11, 33, 74]

Library = Callable[[dict[str, str | bytes]], corpus.Corpus]


@pytest.fixture
def build_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Build the corpus of a made-up standard library; its top level needs names of modules."""

    def build(files: dict[str, str | bytes]) -> corpus.Corpus:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        monkeypatch.setattr(corpus, "_library_folder", lambda: tmp_path)
        return corpus.build.__wrapped__()

    return build


def _all_rows(built: corpus.Corpus) -> list[dict[str, str]]:
    return [*built.train, *built.evaluate]


def _sources(built: corpus.Corpus) -> list[str]:
    prompts = [row["prompt"] for row in _all_rows(built)]
    assert all(prompt.endswith(corpus.SEPARATOR) for prompt in prompts)
    return [prompt.removesuffix(corpus.SEPARATOR) for prompt in prompts]


def _function(name: str, docstring: str = DOCSTRING) -> str:
    return f'def {name}():\n    """{docstring}"""\n    return {name!r}\n'


def test_there_are_thousands_of_pairs_with_a_long_tail(embedded_corpus: corpus.Corpus) -> None:
    lengths = sorted(len(r["completion"]) for r in _all_rows(embedded_corpus) if "prompt" in r)
    assert len(lengths) > 4000
    assert lengths[0] >= corpus.MIN_COMPLETION_CHARACTERS
    assert lengths[len(lengths) * 99 // 100] > 10 * lengths[len(lengths) // 2]


def test_every_row_is_a_pair_or_a_text(embedded_corpus: corpus.Corpus) -> None:
    kinds = {tuple(row) for row in _all_rows(embedded_corpus)}
    assert kinds <= {("prompt", "completion"), ("text",)}
    assert all(value.strip() for row in _all_rows(embedded_corpus) for value in row.values())


def test_no_prompt_holds_a_docstring(embedded_corpus: corpus.Corpus) -> None:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for row in _all_rows(embedded_corpus):
        if "prompt" not in row:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own invalid escapes
            (top,) = ast.parse(row["prompt"]).body
        assert isinstance(top, definitions), row["prompt"]
        for node in ast.walk(top):
            assert not isinstance(node, definitions) or ast.get_docstring(node) is None, row


@pytest.mark.parametrize("function", [shutil.copytree, textwrap.indent, ast.walk])
def test_a_known_function_is_there_with_its_docstring(
    embedded_corpus: corpus.Corpus, function: Callable[..., object]
) -> None:
    completions = [
        row["completion"]
        for row in _all_rows(embedded_corpus)
        if row.get("prompt", "").startswith(f"def {function.__name__}(")
    ]
    assert inspect.getdoc(function) in completions


def test_pairs_are_unique_and_no_docstring_is_in_both_splits(
    embedded_corpus: corpus.Corpus,
) -> None:
    pairs = [(r["prompt"], r["completion"]) for r in _all_rows(embedded_corpus) if "prompt" in r]
    assert len(set(pairs)) == len(pairs)
    train = {row["completion"] for row in embedded_corpus.train if "prompt" in row}
    assert train.isdisjoint(row["completion"] for row in embedded_corpus.evaluate)


def test_about_one_in_forty_pairs_is_held_out(embedded_corpus: corpus.Corpus) -> None:
    num_pairs = sum("prompt" in row for row in _all_rows(embedded_corpus))
    expected = num_pairs / corpus.HELD_OUT_ONE_IN
    # Five standard deviations of a binomial; a few docstrings are shared, which widens it a little.
    assert abs(len(embedded_corpus.evaluate) - expected) < 5 * expected**0.5


def test_the_choice_of_split_never_changes(build_from: Library) -> None:
    docstrings = [f"Return the number {number} as text." for number in range(100)]
    built = build_from(
        {"abc.py": "\n".join(_function(f"f{i}", text) for i, text in enumerate(docstrings))}
    )
    assert [row["completion"] for row in built.evaluate] == [docstrings[i] for i in HELD_OUT]


def test_rows_are_copies() -> None:
    assert set(corpus.SPLITS) == {"train", "evaluate"}
    first = corpus.rows("evaluate")
    first[0]["prompt"] = "changed"
    assert corpus.rows("evaluate")[0]["prompt"] != "changed"


def test_same_rows_whatever_the_hash_seed_and_locale(embedded_corpus: corpus.Corpus) -> None:
    script = (
        "import hashlib, json; from gradacc_dist.data import corpus;"
        "rows = [corpus.rows(split) for split in corpus.SPLITS];"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest(), corpus.fingerprint())"
    )
    # -S: without site-packages, so that anything but the standard library fails to import.
    command = [sys.executable, "-S", "-c", script]
    settings = [
        {"PYTHONHASHSEED": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONHASHSEED": "2", "LC_ALL": "C.UTF-8"},
    ]
    children = [
        subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT), **setting},
            stdout=subprocess.PIPE,
            text=True,
        )
        for setting in settings
    ]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outputs[0] == outputs[1]
    assert outputs[0].split()[1] == corpus.fingerprint()


def test_fingerprint_follows_version_and_sources(
    build_from: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_from({"abc.py": _function("f")})
    before = corpus.fingerprint()
    assert corpus.fingerprint() == before
    build_from({"abc.py": _function("g")})
    patched = corpus.fingerprint()
    assert patched != before
    monkeypatch.setattr(corpus, "FORMAT_VERSION", corpus.FORMAT_VERSION + 1)
    assert corpus.fingerprint() != patched


def test_topics_are_training_texts(build_from: Library) -> None:
    topics = "topics = {'while': 'The while statement\\n', 'del': r'''The del statement'''}\n"
    built = build_from({"abc.py": _function("f"), "pydoc_data/topics.py": topics})
    assert [row["text"] for row in built.train if "text" in row] == [
        "del\n\nThe del statement\n",
        "while\n\nThe while statement\n",
    ]
    assert not any("text" in row for row in built.evaluate)


def test_no_topics_file_means_no_topics(build_from: Library) -> None:
    assert len(_all_rows(build_from({"abc.py": _function("f")}))) == 1


def test_a_library_without_sources_is_an_error(build_from: Library, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of use \(0 files\); set data.train"):
        build_from({"abc.pyc": b"\0"})


def test_what_is_not_the_library_is_skipped(build_from: Library) -> None:
    skipped = ["test/x.py", "unittest/test/x.py", "idlelib/x.py", "lib2to3/x.py", "encodings/x.py"]
    skipped += ["site-packages/x.py", "dist-packages/x.py", "sitecustomize.py", "notes.py"]
    skipped += ["_sysconfigdata__linux.py", "ensurepip/x.py", "abc.txt", "json/__pycache__/x.py"]
    files = {name: _function(f"skipped{i}") for i, name in enumerate(skipped)}
    built = build_from({**files, "json/encoder.py": _function("kept"), "abc.py": _function("also")})
    assert [source.split("(")[0] for source in _sources(built)] == ["def also", "def kept"]
    assert built.num_files == 2


def test_what_is_left_out_is_counted(build_from: Library) -> None:
    built = build_from(
        {
            "abc.py": _function("f"),
            "ast.py": _function("f"),
            "bdb.py": "def broken(:\n",
            "bz2.py": "x = '\0'\n",
            "cgi.py": "# caf\xe9\n".encode("latin-1") + _function("latin").encode(),
            "cmd.py": _function("short", "Too short."),
            "code.py": "def none():\n    return 1\n",
            "copy.py": _function("f").replace("return", f"x = '{'x' * 6000}'\n    return"),
            "csv.py": _function("f", DOCSTRING + "\\ud800"),
            "dis.py": _function("f").replace("return", f"{'CONSTANT_' * 9} = 1\n    return"),
        }
    )
    assert len(_all_rows(built)) == 1
    assert built.left_out == {
        "unreadable_files": 3,
        "short": 2,
        "long": 1,
        "capitals": 1,
        "not_utf8": 1,
        "duplicate": 1,
    }


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f'def f():\n    """{DOCSTRING}"""\n    return 1\n', "def f():\n    return 1"),
        (f'def f(): "{DOCSTRING}"\n', "def f(): pass"),
        (f'class A:\n    """{DOCSTRING}"""\n', "class A:\n    pass"),
        (f'class A: "{DOCSTRING}"; x = 1\n', "class A: x = 1"),
        (f'def f():\n    "{DOCSTRING}"; return 1\n', "def f():\n    return 1"),
        (f'def f():\n    ("{DOCSTRING}"\n     "More.")\n    return 1\n', "def f():\n    return 1"),
        (
            f'def f():\n    "{DOCSTRING}"  # why\n    return 1\n',
            "def f():\n    # why\n    return 1",
        ),
        (f'def é(): "é{DOCSTRING}é"# é\n', "def é(): pass  # é"),
        (f'@d\n@e(1)\nasync def f():\n    "{DOCSTRING}"\n', "@d\n@e(1)\nasync def f():\n    pass"),
        (f'x = 1\x0c\r\n\x0c\r\ndef f():\r\n    "{DOCSTRING}"\r\n', "def f():\n    pass"),
        (
            f'if 1:\n    def f():\n        """{DOCSTRING}\n\n        M.\n        """\n'
            '        return """\nx\n"""\n',
            'def f():\n    return """\nx\n"""',
        ),
    ],
)
def test_the_docstring_is_cut_and_the_rest_is_kept(
    build_from: Library, source: str, expected: str
) -> None:
    assert _sources(build_from({"abc.py": source})) == [expected]


def test_docstrings_inside_are_cut_too(build_from: Library) -> None:
    source = (
        f'class A:\n    """{DOCSTRING} Outer."""\n\n    def f(self):\n        """{DOCSTRING} Inner.'
        '\n        """\n        return 1\n\n    def g(self):\n        "Short."\n        return 2\n'
    )
    built = build_from({"abc.py": source})
    method = "def f(self):\n        return 1"
    assert _sources(built) == [
        f"class A:\n\n    {method}\n\n    def g(self):\n        return 2",
        textwrap.dedent(method.replace("        ", "    ")),
    ]
    assert [row["completion"] for row in _all_rows(built)] == [
        f"{DOCSTRING} Outer.",
        f"{DOCSTRING} Inner.",
    ]


def test_the_library_may_hold_what_this_python_warns_about(build_from: Library) -> None:
    # An invalid escape: a warning when parsed, and warnings are errors here.
    built = build_from({"abc.py": _function("f").replace("return", "x = '\\d'\n    return")})
    assert len(_all_rows(built)) == 1
    assert built.left_out["unreadable_files"] == 0
