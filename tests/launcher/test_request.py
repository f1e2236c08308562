"""What a user asks for, and the words that ask for it again."""

from pathlib import Path

import pytest

from gradacc_dist.config.load import load
from gradacc_dist.errors import ConfigError
from launcher import cli
from launcher.request import ENGINES, SHIPPED, Nodes, Request


@pytest.mark.parametrize(
    ("text", "nodes"),
    [("1", Nodes()), ("2", Nodes(2, 2)), ("2:8", Nodes(2, 8)), ("3:3", Nodes(3, 3))],
)
def test_nodes_are_a_number_or_a_range(text, nodes):
    assert Nodes.parse(text) == nodes
    assert Nodes.parse(str(nodes)) == nodes
    assert nodes.is_elastic == (text == "2:8")


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "two", "8:2", "0:2", "2:", ":2", "1.5", " 2", "２"]
)
def test_other_nodes_are_refused_with_what_is_legal(text):
    with pytest.raises(ConfigError, match=r"--nodes: got .*; needs a number, or MIN:MAX"):
        Nodes.parse(text)


REQUESTS = [
    Request(),
    Request(Path("a b.yaml"), ("--window.examples", "8"), ranks=2),
    Request(nodes=Nodes(2, 8), engine="zero3_offload", cpu=True),
    Request(Path("r.yaml"), ("--track.name", "it's", "--run.seed=3"), 4, Nodes(2, 2), "ddp", True),
]


@pytest.mark.parametrize("asked", REQUESTS)
def test_a_command_line_asks_for_the_same(asked):
    parsed, flags = cli._parser().parse_known_args(["train", *asked.command_line()])
    assert cli.request_of(parsed, tuple(flags), {}) == asked


def test_the_program_gets_the_config_the_flags_and_the_engine():
    asked = Request(Path("r.yaml"), ("--run.seed", "3"), engine="fsdp2")
    words = ("--config", "r.yaml", "--run.seed", "3", "--engine.name", "fsdp2")
    assert asked.program == ("gradacc_dist.train", *words)
    assert Request().program == ("gradacc_dist.train",)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_that_can_be_asked_for_is_one_of_the_run(engine):
    ranks = "1" if engine == "single" else "2"
    resolved = load(None, Request(engine=engine).run_flags, {"WORLD_SIZE": ranks})
    chosen = resolved.config.engine
    assert chosen.name == engine or chosen.deepspeed == SHIPPED / "deepspeed" / f"{engine}.json"


def test_every_shipped_json_can_be_asked_for():
    assert {path.stem for path in (SHIPPED / "deepspeed").iterdir()} <= set(ENGINES)
