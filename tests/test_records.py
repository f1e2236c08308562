"""What the start table says of the engine and the hosts."""

from types import SimpleNamespace
from unittest.mock import patch

import torch

from gradacc_dist.records import _engine_rows, host_rows


def rows(ranks: int, devices: int = 0, **facts) -> dict[str, str]:
    sound = {"name": "fsdp2", "reason": "engine.name asks for it", "reduction_factor": 1.0}
    travel = {"reduces_once": True, "extra_memory_bytes": 0}
    engine = SimpleNamespace(**{**sound, **travel, **facts})
    world = SimpleNamespace(ranks=ranks, device=torch.device("cpu"))
    with patch("torch.cuda.device_count", return_value=devices):
        return _engine_rows(engine, world)


def test_the_engine_why_and_what_was_measured():
    assert rows(1) == {
        "engine": "fsdp2 on cpu: engine.name asks for it; measured reduction factor 1"
    }


def test_the_price_of_reducing_once():
    assert rows(2)["reduction"] == "gradients travel once a window"
    assert rows(2, reduces_once=False)["reduction"] == "gradients travel in each micro-batch"
    assert (
        "for up to 3.0 MiB more on each rank" in rows(2, extra_memory_bytes=3 * 2**20)["reduction"]
    )


def test_a21_gpus_that_one_rank_leaves_idle_are_named():
    """torch's DataParallel would take them all, and divide again."""
    assert "3 of 4 GPUs" in rows(1, devices=4)["idle devices"]
    assert "--num_processes 4" in rows(1, devices=4)["idle devices"]
    assert "idle devices" not in rows(4, devices=4)


def test_hosts_are_told_where_there_are_several():
    """In the order of ranks; of many, the first and the last."""
    assert host_rows(["n1", "n1"]) == {}
    assert host_rows(["n2", "n1", "n1"]) == {"hosts": "2 (n2: 1 rank(s), n1: 2 rank(s))"}
    many = host_rows([f"n{rank // 8}" for rank in range(512)])["hosts"]
    assert many.startswith("64 (n0: 8 rank(s), ")
    assert many.endswith(", ..., n63: 8 rank(s))")
