"""Sources: the same rows from each kind of place, each with the place it stands at."""

import datasets
import pytest
from writing import WRITERS, json_lines

from gradacc_dist.data import files
from gradacc_dist.data.sources import Source
from gradacc_dist.errors import DataError

ROWS = [{"prompt": f"{n}?", "completion": f"é{n}"} for n in range(1, 8)]


def read(name, role="train"):
    found = list(Source(str(name), role).rows())
    return [row for _, row in found], [str(place) for place, _ in found]


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_of_file_gives_the_same_rows(name, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROWS_PER_BATCH", 2)
    path = WRITERS[name](tmp_path / name, ROWS)
    rows, places = read(path)
    assert rows == ROWS
    assert places == [f"{path}: row {n}" for n in range(1, 8)]
    assert list(map(str, Source(str(path), "train").places([1, 6]))) == [places[1], places[6]]
    assert Source(str(path), "train").places([]) == []


def test_the_hash_follows_content_and_kind_not_the_name(tmp_path):
    def sha256(path):
        return Source(str(path), "train").sha256()

    path = json_lines(tmp_path / "a.jsonl", ROWS)
    first = sha256(path)
    assert sha256(json_lines(tmp_path / "b.jsonl", ROWS)) == first
    assert sha256(json_lines(tmp_path / "a.txt", ROWS)) != first
    assert sha256(json_lines(path, ROWS[1:])) != first
    folder = tmp_path / "folder"
    folder.mkdir()
    json_lines(folder / "a.jsonl", ROWS[:3])
    one = sha256(folder)
    json_lines(folder / "b.jsonl", ROWS[3:])
    two = sha256(folder)
    json_lines(folder / "a.jsonl", ROWS[:4])
    json_lines(folder / "b.jsonl", ROWS[4:])
    assert len({one, two, sha256(folder)}) == 3


def test_lines_of_text_are_rows_by_line_number(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\n  two \n \nthree".encode())
    assert read(path) == (
        [{"text": "one"}, {"text": "  two "}, {"text": "three"}],
        [f"{path}: row {n}" for n in (1, 3, 5)],
    )


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": "a"}\r\n\r\n{"text": "b"}'.encode())
    assert read(path) == ([{"text": "a"}, {"text": "b"}], [f"{path}: row 1", f"{path}: row 3"])


def test_a_folder_is_its_files_in_sorted_order(tmp_path):
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    json_lines(tmp_path / "c.jsonl", ROWS[5:])
    WRITERS["rows.parquet"](tmp_path / "b" / "2.parquet", ROWS[2:5])
    WRITERS["file.arrow"](tmp_path / "b" / "1.arrow", ROWS[:2])
    for hidden in [".c.jsonl", "b/.hidden/c.jsonl"]:
        (tmp_path / hidden).write_text("not read")
    (tmp_path / "README.md").write_text("not read")
    rows, places = read(f"{tmp_path}/")
    assert rows == ROWS
    assert places[0] == f"{tmp_path}/b/1.arrow: row 1"
    assert places[2] == f"{tmp_path}/b/2.parquet: row 1"
    assert places[-1] == f"{tmp_path}/c.jsonl: row 2"
    assert Source(str(tmp_path), "train").left_out() == (f"{tmp_path}/README.md",)


def test_what_save_to_disk_wrote(tmp_path):
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    halves = {"train": dataset.select([4, 2]), "validation": dataset.select([0])}
    datasets.DatasetDict(halves).save_to_disk(tmp_path / "two")

    assert read(tmp_path / "one") == (ROWS, [f"{tmp_path}/one: row {n}" for n in range(1, 8)])
    assert read(tmp_path / "two")[0] == [ROWS[4], ROWS[2]]
    assert read(tmp_path / "two", "evaluate")[0] == [ROWS[0]]
    assert read(f"{tmp_path}/two:validation") == ([ROWS[0]], [f"{tmp_path}/two:validation: row 1"])
    names = [tmp_path / "one", tmp_path / "two", f"{tmp_path}/two:validation"]
    assert len({Source(str(name), "train").sha256() for name in names}) == 3
    for name, fragment in [("two:test", "write one of"), ("one:train", "one dataset without")]:
        with pytest.raises(DataError, match=fragment):
            read(f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("name", "role", "asked"),
    [
        ("gsm8k", "train", ("gsm8k", None, "train")),
        ("openai/gsm8k", "evaluate", ("openai/gsm8k", None, "validation")),
        ("openai/gsm8k:test", "evaluate", ("openai/gsm8k", None, "test")),
        ("openai/gsm8k/main:train[:10%]", "train", ("openai/gsm8k", "main", "train[:10%]")),
    ],
)
def test_other_names_are_asked_of_the_hub_once(name, role, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []

    def load_dataset(path, subset, *, split):
        calls.append((path, subset, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = Source(name, role)
    assert [row for _, row in source.rows()] == ROWS
    assert [str(place) for place, _ in source.rows()][6] == f"{name}: row 7"
    assert len(source.sha256()) == 64
    assert calls == [asked]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'a/b'\non the Hub"),
        ValueError('Unknown split "train"'),
        datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"),
        datasets.exceptions.DataFilesNotFoundError("No (supported) data files found in a/b"),
    ],
)
def test_a_hub_that_does_not_deliver_is_one_line(error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load_dataset(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as raised:
        Source("a/b", "train").sha256()
    message = str(raised.value)
    assert message.startswith("a/b: no file or folder of this name here (seen from ")
    assert " ".join(str(error).split()) in message
    assert "org/name:split" in message
    assert "\n" not in message


def test_names_that_no_hub_has_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", None)
    for name in ["none.jsonl", "/none/at/all", "../none", "~/none", "a/b/c/d", "none.txt.gz"]:
        with pytest.raises(DataError, match=r"cannot be read|is no kind of file"):
            list(Source(name, "train").rows())
