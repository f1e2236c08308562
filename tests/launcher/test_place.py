"""Where a node is, as the environment says it."""

import pytest

from gradacc_dist.errors import ConfigError
from launcher.place import Place, nodes_of, place_of, places_of, ranks_of
from launcher.request import Nodes

TWO, ELASTIC = Nodes(2, 2), Nodes(2, 8)
SAID = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29501"}


def kubeflow(environ: dict[str, str]) -> dict[str, str]:
    return {f"PET_{name}": value for name, value in environ.items()}


@pytest.mark.parametrize("environ", [SAID, kubeflow(SAID)], ids=["ours", "kubeflow"])
def test_a_node_finds_its_place(environ):
    assert nodes_of(environ) == TWO
    assert place_of(environ, TWO) == Place(1, "n1", 29501)


def test_ours_wins_and_empty_is_unset():
    environ = {**kubeflow(SAID), "NODE_RANK": "0", "MASTER_ADDR": ""}
    assert place_of(environ, TWO) == Place(0, "n1", 29501)
    assert nodes_of({"NNODES": ""}) == Nodes()


def test_one_node_needs_no_word():
    assert nodes_of({}) == Nodes()
    place = place_of({"NODE_RANK": "7", "MASTER_PORT": "x"}, Nodes())
    assert (place.rank, place.host) == (0, "localhost")
    assert place.is_first


def test_nodes_have_names_where_the_scheduler_knows_them():
    place = place_of({**SAID, "GRADACC_NODES": "n1,n2"}, TWO)
    assert place.names == ("n1", "n2")
    assert [place.describe(rank) for rank in range(3)] == ["n1", "n2", "node 2"]
    assert not place.is_first


def test_the_port_has_a_default():
    del (environ := dict(SAID))["MASTER_PORT"]
    assert place_of(environ, TWO).port == 29500


def test_elastic_nodes_have_no_number():
    place = place_of({"MASTER_ADDR": "n1"}, ELASTIC)
    assert (place.rank, place.host) == (None, "n1")
    assert not place.is_first
    assert places_of({"MASTER_ADDR": "n1"}, ELASTIC) == [place]


def test_all_that_is_missing_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        place_of({"MASTER_PORT": "http"}, TWO)
    told = str(caught.value)
    for what in ("MASTER_ADDR is not set", "NODE_RANK is not set", "MASTER_PORT is http"):
        assert what in told


@pytest.mark.parametrize("rank", ["2", "-1", "one", "1.0"])
def test_a_number_that_no_node_has_is_refused(rank):
    with pytest.raises(ConfigError, match=f"NODE_RANK is {rank}"):
        place_of({**SAID, "NODE_RANK": rank}, TWO)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "tcp://10.0.0.1:80"])
def test_a_port_that_there_is_not_is_refused(port):
    with pytest.raises(ConfigError, match=r"MASTER_PORT is .*1 to 65535"):
        place_of({**SAID, "MASTER_PORT": port}, TWO)


@pytest.mark.parametrize(
    ("text", "ranks"), [("4", 4), ("auto", None), ("gpu", None), ("", None), ("0", None)]
)
def test_ranks_are_a_number_or_nobodys_word(text, ranks):
    assert ranks_of({"PET_NPROC_PER_NODE": text}) == ranks
    assert ranks_of({"NPROC_PER_NODE": text}) == ranks


def test_all_places_where_nothing_says_which_is_this():
    del (environ := dict(SAID))["NODE_RANK"]
    assert [place.rank for place in places_of(environ, TWO)] == [0, 1]
    assert [place.rank for place in places_of(SAID, TWO)] == [1]
    assert places_of({}, Nodes()) == [place_of({}, Nodes())]
