"""The resolved configuration as YAML that reads back the same, and as a table (C2)."""

import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from gradacc_dist.config.engine import FSDP2_FIELDS
from gradacc_dist.config.fields import Field, Kind, fields, nested
from gradacc_dist.config.inline import inline
from gradacc_dist.config.load import load
from gradacc_dist.config.present import dump, print_table, rich_table, table
from gradacc_dist.config.resolved import Resolved, leaves
from gradacc_dist.config.schema import Config


def resolved(config: Config) -> Resolved:
    return Resolved(config, {leaf: "default" for leaf, _ in leaves(config)})


# Every text that a YAML file can hold and a person can type; not surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
FREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXT | st.integers() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=8,
)


def values_of_kind(kind: Kind) -> st.SearchStrategy[object]:
    """Values of a form, of which the schema then refuses some."""
    match kind.name:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(0, 2**60)
        case "number":
            return st.floats(0, 1) | st.floats(0, allow_infinity=False)
        case "choice":
            return st.sampled_from(kind.choices)
        case "list":
            return st.tuples(*(values_of_kind(item[0]) for item in kind.items))
        case "mapping" if kind.entries:
            return st.fixed_dictionaries(
                {name: values_of_kind(kinds[0]) for name, kinds in kind.entries}
            )
        case "mapping":
            return st.dictionaries(TEXT, FREE, max_size=3)
    return TEXT


def values_of_field(field: Field) -> st.SearchStrategy[object]:
    def is_legal(value: object) -> bool:
        try:
            Config.model_validate(nested({field.path: value}))
        except ValueError:
            return False
        return True

    strategies = [values_of_kind(kind) for kind in field.kinds]
    return (st.just(field.default) | st.one_of(strategies)).filter(is_legal)


CONFIGS = st.fixed_dictionaries(
    {path: values_of_field(field) for path, field in fields().items()}
).map(lambda values: Config.model_validate(nested(values)))


def as_rules_want_it(config: Config, model: dict[str, object]) -> Config:
    """The config with the few values that rules between fields ask for."""
    window, schedule = config.window, config.schedule.model_copy(update={"warmup_steps": 0})
    if window.supervised_tokens is not None:
        window = window.model_copy(update={"examples": None})
    if schedule.epochs is not None:
        schedule = schedule.model_copy(update={"steps": None})
    only_fsdp2 = dict.fromkeys(FSDP2_FIELDS)
    engine = config.engine.model_copy(update={"name": "auto", "deepspeed": None, **only_fsdp2})
    precision = config.precision.model_copy(update={"accumulate": "fp32"})
    data = config.data
    if schedule.epochs is not None or not isinstance(data.train, str):
        data = data.model_copy(update={"streaming": False})
    chosen = config.model.model_copy(update=model)
    run = config.run.model_copy(update={"allow_change": (), "resume": "auto"})
    update = {
        "run": run,
        "data": data,
        "window": window,
        "schedule": schedule,
        "engine": engine,
        "precision": precision,
        "model": chosen,
    }
    return config.model_copy(update=update)


@settings(max_examples=50, deadline=None)
@given(config=CONFIGS, is_new=st.booleans())
def test_every_config_reads_back_the_same(config, is_new, tmp_path_factory):
    """C2: what a run writes down is what another run can start from."""
    free = {**(config.model.config or {}), "model_type": "llama"}
    new = {"path": None, "config": free, "tokenizer": config.model.tokenizer or "t"}
    old = {"path": config.model.path or "x", "config": None}
    config = as_rules_want_it(config, new if is_new else old)
    path = tmp_path_factory.mktemp("dump") / "run.yaml"
    path.write_text(dump(resolved(config)), encoding="utf-8", newline="")

    again = load(path, (), environ={}).config

    assert again == config
    # 1 == 1.0 == True in Python: compare what was written too, which tells them apart.
    assert inline(again.model_dump()) == inline(config.model_dump())


def test_dump_has_every_field_with_its_source():
    text = dump(load(None, ["--optimizer.eps", "1e-8"], environ={}))
    assert "  eps: 1e-08  # --optimizer.eps\n" in text
    assert "    model_type: llama  # gradacc_dist/config/demo.yaml:" in text
    assert "  max_grad_norm: 1.0  # default\n" in text
    for path in fields():
        assert f"  {path.partition('.')[2]}:" in text


def test_dump_of_the_demo_is_a_configuration_of_its_own(tmp_path):
    demo = load(None, (), environ={})
    path = tmp_path / "run.yaml"
    path.write_text(dump(demo))
    again = load(path, (), environ={})
    assert again.config == demo.config
    assert set(again.sources.values()) == {
        f"{path}:{number}"
        for number, line in enumerate(dump(demo).splitlines(), 1)
        if not line.endswith(":")
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-8, "1e-08"),
        (math.inf, ".inf"),
        ("runs/a-1", "runs/a-1"),
        ("null", '"null"'),
        ("no", '"no"'),
        ("1e-5", '"1e-5"'),
        ("a: b", '"a: b"'),
        ("", '""'),
        ((0.9, [1, {"a": None}]), "[0.9, [1, {a: null}]]"),
    ],
)
def test_values_on_one_line(value, text):
    assert inline(value) == text


def test_table_is_aligned_and_complete():
    shown = load(None, ["--window.examples", "32"], environ={})
    header, *rows, closing = table(shown).splitlines()
    column = header.index("source")
    assert [row.split()[0] for row in rows] == list(shown.sources)
    assert [row[column:] for row in rows] == list(shown.sources.values())
    assert "32 " in next(row for row in rows if row.startswith("window.examples"))
    assert closing.startswith(f"{len(rows)} values, ")
    assert closing.endswith("no conflicts")


def test_the_terminal_shows_the_same_rows():
    shown = load(None, ["--data.train", "[bold]x[/bold]"], environ={})
    page = io.StringIO()
    Console(file=page, width=200).print(rich_table(shown))
    for path, source in shown.sources.items():
        line = next(line for line in page.getvalue().splitlines() if line.split()[:1] == [path])
        assert line.rstrip().endswith(source)
    assert "[bold]x[/bold]" in page.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_print_table(is_terminal, capsys):
    print_table(load(None, (), environ={}), is_terminal=is_terminal)
    assert "window.examples" in capsys.readouterr().out
