"""The shipped accelerate configurations: the comment on top of each says how to launch with it.

What they lead to is asked of accelerate itself, so those for GPUs are read on any machine. Those
for CPUs train in test_train.py, test_train_engines.py and hosts/test_two_hosts.py.
"""

import os
import shlex

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from launching import ACCELERATE_FILES, ROOT

from gradacc_dist.config.engine import choose_engine
from gradacc_dist.config.load import load

NAMES = sorted(path.stem for path in ACCELERATE_FILES.glob("*.yaml"))
FILLED = {"HOST0": "n1", "I": "1", "PORT": "1234", "RANKS": "6"}


def command_on_top(name: str) -> list[str]:
    """The command in the first comment lines, its placeholders filled in."""
    text = (ACCELERATE_FILES / f"{name}.yaml").read_text()
    lines = text.replace("\\\n#", "").splitlines()
    return [FILLED.get(word, word) for word in shlex.split(lines[0].removeprefix("# "))]


def launched(name: str, monkeypatch):
    """accelerate's arguments and environment after that command."""
    monkeypatch.chdir(ROOT)
    for variable in os.environ:
        if variable.startswith(("ACCELERATE", "FSDP", "CUDA_VISIBLE")):
            monkeypatch.delenv(variable)
    program, verb, *flags = command_on_top(name)
    assert (program, verb) == ("accelerate", "launch")
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(flags))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""  # of no use to this project
        return args, {**prepare_deepspeed_cmd_env(args)[1], "WORLD_SIZE": str(args.num_processes)}
    if args.use_fsdp or args.multi_gpu:
        # torchrun adds how many ranks there are.
        return args, {**prepare_multi_gpu_env(args), "WORLD_SIZE": str(args.num_processes)}
    return args, prepare_simple_launcher_cmd_env(args)[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_on_top_starts_the_engine_of_the_name(name, monkeypatch):
    assert command_on_top(name)[3] == f"configs/accelerate/{name}.yaml"
    *_, device, engine = name.split("_")
    args, environ = launched(name, monkeypatch)
    assert args.module
    assert args.training_script == "gradacc_dist.train"
    ranks = 1 if engine == "single" else 6
    assert args.num_processes == ranks
    choice = choose_engine(load(None, environ=environ).config.engine, environ, ranks)
    stage = choice.deepspeed.stage if choice.deepspeed else ""
    assert choice.name.replace("deepspeed", f"zero{stage}") == engine
    # Without a device of such a number torch finds no GPU, on a machine that has some too.
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "").startswith("-1")
    assert hidden == (device == "cpu")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("multinode")])
def test_hosts_are_told_apart_on_the_command_line(name, monkeypatch):
    args, _ = launched(name, monkeypatch)
    assert (args.nnodes, args.node_rank, args.nproc_per_node) == ("2", 1, "3")
    assert args.rdzv_backend == "static"
    # accelerate's DeepSpeed launcher says the same in other words.
    place = args.rdzv_endpoint or f"{args.master_addr}:{args.master_port}"
    assert place == "n1:1234"


@pytest.mark.parametrize("name", [name for name in NAMES if "gpu" in name])
def test_cpu_and_gpu_differ_in_the_device_only(name):
    for_gpu, for_cpu = (
        load_config_from_file(str(ACCELERATE_FILES / f"{each}.yaml")).to_dict()
        for each in (name, name.replace("gpu", "cpu"))
    )
    assert for_gpu.pop("use_cpu") is False
    assert for_cpu.pop("use_cpu") is True
    assert "gpu_ids" not in for_gpu
    assert set(for_cpu.pop("gpu_ids").split(",")) == {"-1"}
    assert for_gpu == for_cpu


def test_there_is_one_for_each_device_engine_and_number_of_hosts():
    engines = {name.rsplit("_", 1)[-1] for name in NAMES}
    assert engines == {"single", "ddp", "fsdp2", "zero1", "zero2", "zero3"}
    wanted = {f"{device}_{engine}" for device in ("cpu", "gpu") for engine in engines}
    wanted |= {f"multinode_{name}" for name in wanted if not name.endswith("_single")}
    assert set(NAMES) == wanted
