"""`python -m gradacc_dist.config`: schema for editors, table for people, one line for mistakes."""

import json

import pytest

from gradacc_dist.config.__main__ import main
from gradacc_dist.config.fields import sections


def test_schema_is_json_schema_of_every_section(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert list(schema["properties"]) == list(sections())
    assert schema["additionalProperties"] is False


def test_show_prints_the_table(capsys):
    assert main(["show", "--window.examples", "32"]) == 0
    assert "--window.examples" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["shwo"], ["schema", "x"]])
def test_bad_usage_is_one_line(argv, capsys):
    """C3: exit 10, no traceback."""
    assert main(argv) == 10
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "usage: python -m gradacc_dist.config schema | show" in printed.err


def test_a_mistake_leaves_with_10(capsys):
    assert main(["show", "--window.exampels", "3"]) == 10
    assert "did you mean --window.examples?" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["-h"], ["--help"], ["show", "--help"]])
def test_help(argv, capsys):
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("usage: ")
