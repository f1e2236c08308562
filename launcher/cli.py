"""The command line of `gradacc`. What a command needs is imported when it is called."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gradacc_dist.errors import ConfigError, GradaccError

if TYPE_CHECKING:
    from launcher.request import Request

PURPOSE = "Start, watch and stop training runs: on this machine, under SLURM, on Kubernetes."
RUN_FLAGS = "Any other --section.field VALUE goes to the run: gradacc train --check shows them all."
FORWARDED = {
    "validate": "say what a run's data holds and what is wrong with it",
    "export": "write the model of a checkpoint as a folder for from_pretrained",
}


class Parser(argparse.ArgumentParser):
    """Whose mistakes are ours: told in a line, with our exit code."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point. Returns the process's exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        if words and words[0] in FORWARDED:
            return _forward(words[0], words[1:])
        asked, flags = _parser().parse_known_args(words)
        if flags and not asked.takes_flags:
            raise ConfigError(f"gradacc {asked.command}: does not take {flags[0]}")
        return int(asked.act(asked, tuple(flags)) or 0)
    except GradaccError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # who reads (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> Parser:
    parser = Parser(prog="gradacc", description=PURPOSE, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, sentence: str, act: object, *, takes_flags: bool = False) -> Parser:
        epilog = RUN_FLAGS if takes_flags else None
        command = commands.add_parser(
            name, help=sentence, description=sentence, epilog=epilog, allow_abbrev=False
        )
        command.set_defaults(act=act, takes_flags=takes_flags)
        return command

    train = add("train", "train, here and now", _train, takes_flags=True)
    _add_request(train)
    train.add_argument("--dry-run", action="store_true", help="print the command and start nothing")

    doctor = add("doctor", "say what is wrong with the nodes", _doctor, takes_flags=True)
    _add_request(doctor)

    init = add("init", "write a configuration to start from", _init)
    init.add_argument("folder", type=Path, metavar="DIR", help="folder that receives run.yaml")

    for name, sentence in FORWARDED.items():
        add(name, sentence, None)
    return parser


def _add_request(command: Parser) -> None:
    add = command.add_argument
    add("--config", type=Path, metavar="FILE", help="YAML file of settings; the demo without it")
    add("--ranks", type=_count, metavar="N", help="ranks on each node; one a GPU without it")
    add("--nodes", metavar="N | MIN:MAX", help="nodes; MIN:MAX for a run that shrinks and grows")
    add("--engine", metavar="NAME", help="single, ddp, fsdp2, zero0 to zero3, zero2_offload, ...")
    add("--cpu", action="store_true", help="CPU ranks, on a machine with GPUs too")
    add("--join-seconds", type=_count, metavar="N", help="wait so long for other nodes (600)")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text}; needs a number from 1")
    return int(text)


def request_of(asked: argparse.Namespace, flags: tuple[str, ...]) -> Request:
    """What was asked for, by the command line and else by the environment. Raises ConfigError."""
    from launcher.place import nodes_of, ranks_of
    from launcher.request import ENGINES, JOIN_SECONDS, Nodes, Request

    if asked.engine is not None and asked.engine not in ENGINES:
        legal = ", ".join(sorted(ENGINES))
        raise ConfigError(f"--engine: got {asked.engine}; there are {legal}")
    return Request(
        config=asked.config,
        flags=flags,
        ranks=asked.ranks or ranks_of(os.environ),
        nodes=nodes_of(os.environ) if asked.nodes is None else Nodes.parse(asked.nodes),
        engine=asked.engine,
        cpu=asked.cpu,
        join_seconds=asked.join_seconds or JOIN_SECONDS,
    )


def _train(asked: argparse.Namespace, flags: tuple[str, ...]) -> int:
    from launcher.running import check, run

    request = request_of(asked, tuple(flag for flag in flags if flag != "--check"))
    if "--check" in flags:
        return check(request, os.environ)
    return run(request, os.environ, dry=asked.dry_run)


def _doctor(asked: argparse.Namespace, flags: tuple[str, ...]) -> int:
    from launcher.doctor import examine

    return examine(request_of(asked, flags), os.environ)


def _init(asked: argparse.Namespace, _flags: tuple[str, ...]) -> None:
    from launcher.starter import write_starter

    print(write_starter(asked.folder))


def _forward(name: str, words: Sequence[str]) -> int:
    """Become `python -m gradacc_dist.<name>`: same terminal, same signals, same exit code."""
    os.execv(sys.executable, [sys.executable, "-m", f"gradacc_dist.{name}", *words])


if __name__ == "__main__":
    sys.exit(main())
