"""The command line of `gradacc`. What a command needs is imported when it is called."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gradacc_dist.errors import ConfigError, GradaccError

if TYPE_CHECKING:
    from launcher.request import Request

PURPOSE = "Start, watch and stop training runs: on this machine, under SLURM, on Kubernetes."
RUN_FLAGS = "Any other --section.field VALUE goes to the run: gradacc train --check shows them all."
RUN = "output folder of a run (run.output_dir)"
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
        asked, flags = _parser().parse_known_args(_joined(words))
        if flags and not asked.takes_flags:
            raise ConfigError(f"gradacc {asked.command}: does not take {flags[0]}")
        if "--check" in flags and asked.command != "train":
            raise ConfigError(
                f"gradacc {asked.command}: does not take --check; gradacc train --check, with the "
                "same flags of the run, shows the settings"
            )
        return int(asked.act(asked, tuple(flags)) or 0)
    except GradaccError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # who reads (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _joined(words: Sequence[str]) -> list[str]:
    """With what `--sbatch` is given made part of its word: alone, it looks like an option."""
    rest = iter(words)
    return [f"--sbatch={next(rest, '')}" if word == "--sbatch" else word for word in rest]


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

    submit = add("submit", "train in the background, or under SLURM", _submit, takes_flags=True)
    _add_request(submit)
    _add_submit(submit)

    # For batch scripts: without help it is not in the list of commands.
    after = commands.add_parser("after-slurm", allow_abbrev=False)
    after.set_defaults(act=_after_slurm, takes_flags=False)
    after.add_argument("folder", type=Path)
    after.add_argument("--status", type=int, required=True)
    after.add_argument("--began", type=float, required=True)
    after.add_argument("--asked", action="store_true")

    manifest = add("manifest", "write a run as Kubernetes objects", _manifest, takes_flags=True)
    _add_request(manifest)
    _add_kubernetes(manifest)

    for name, sentence, act in (
        ("status", "say where runs stand: step, loss, speed, checkpoint, restarts", _status),
        ("logs", "print what a run printed", _logs),
        ("stop", "ask a run to save a checkpoint and leave", _stop),
    ):
        command = add(name, sentence, act)
        nargs = "*" if name == "status" else None
        command.add_argument("run", type=Path, metavar="RUN", nargs=nargs, help=RUN)
        if name == "logs":
            command.add_argument("-f", "--follow", action="store_true", help="until the run ends")

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


def _add_submit(command: Parser) -> None:
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--local", action="store_true", help="in the background of this machine")
    where.add_argument("--slurm", action="store_true", help="as a batch job; needs --ranks")
    slurm = command.add_argument_group("with --slurm")
    sentence = "options for sbatch, such as '--partition=large --time=1:00:00'; may be repeated"
    slurm.add_argument("--sbatch", action="append", default=[], metavar="OPTIONS", help=sentence)
    sentence = "time to save, from SIGTERM to the job's end; 600 without it"
    slurm.add_argument("--grace", type=_count, metavar="SECONDS", help=sentence)
    sentence = "print the batch script and submit nothing"
    slurm.add_argument("--dry-run", action="store_true", help=sentence)


def _add_kubernetes(command: Parser) -> None:
    add = command.add_argument
    add("--kubernetes", action="store_true", required=True, help="for Kubernetes 1.29 and later")
    add("--kind", choices=("job", "trainjob"), default="job", help="trainjob: Kubeflow's")
    add("--image", required=True, metavar="NAME", help="of the project, as the nodes can pull it")
    add("--volume-claim", required=True, metavar="NAME", help="volume of data and outputs")
    add("--name", help="of the job; the last part of run.output_dir without it")
    add("--namespace", metavar="NAME", help="kubectl's own without it")
    add("--secret", action="append", default=[], metavar="NAME[:KEY...]", help="to the environment")
    add("--grace", type=_count, metavar="SECONDS", help="to save a checkpoint in; 600 without it")
    add("--output", type=Path, metavar="FILE", help="write there; to the terminal without it")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text}; needs a number from 1")
    return int(text)


def request_of(
    asked: argparse.Namespace, flags: tuple[str, ...], environ: Mapping[str, str] = os.environ
) -> Request:
    """What was asked for, by the command line and else by the environment. Raises ConfigError."""
    from launcher.place import nodes_of, ranks_of
    from launcher.request import ENGINES, JOIN_SECONDS, Nodes, Request

    if asked.engine is not None and asked.engine not in ENGINES:
        legal = ", ".join(sorted(ENGINES))
        raise ConfigError(f"--engine: got {asked.engine}; there are {legal}")
    return Request(
        config=asked.config,
        flags=flags,
        ranks=asked.ranks or ranks_of(environ),
        nodes=nodes_of(environ) if asked.nodes is None else Nodes.parse(asked.nodes),
        engine=asked.engine,
        cpu=asked.cpu,
        join_seconds=asked.join_seconds or JOIN_SECONDS,
    )


def _train(asked: argparse.Namespace, flags: tuple[str, ...]) -> int:
    from launcher.running import check, run, show

    request = request_of(asked, tuple(flag for flag in flags if flag != "--check"))
    if "--check" in flags:
        return check(request, os.environ)
    return show(request, os.environ) if asked.dry_run else run(request, os.environ)


def _submit(asked: argparse.Namespace, flags: tuple[str, ...]) -> None:
    from launcher import local, slurm
    from launcher.checked import prepared
    from launcher.grace import GRACE_SECONDS
    from launcher.watching import require_alone

    request = request_of(asked, flags)
    if asked.slurm:
        grace = asked.grace or GRACE_SECONDS
        folder, script = slurm.prepare(request, asked.sbatch, grace, os.environ)
        if asked.dry_run:
            print(script, end="")
            return
        require_alone(folder.output)
        where, output = f"SLURM job {slurm.submit(request, folder, script)}", folder.output
    elif asked.sbatch or asked.dry_run:
        raise ConfigError("--sbatch and --dry-run go with --slurm, not with --local")
    else:
        where, output = "training in the background", prepared(request, os.environ).output
        require_alone(output)
        local.submit(request, output)
    print(f"{where}; watch it with: gradacc status {shlex.quote(str(output))}")


def _after_slurm(asked: argparse.Namespace, _flags: tuple[str, ...]) -> int:
    from launcher.launches import ATTEMPT, LaunchFolder
    from launcher.slurm_after import Try, after

    ended = Try(
        job_id=os.environ["SLURM_JOB_ID"],
        attempt=int(os.environ[ATTEMPT]),
        began=asked.began,
        status=asked.status,
        asked=asked.asked,
    )
    return after(LaunchFolder(asked.folder), ended)


def _manifest(asked: argparse.Namespace, flags: tuple[str, ...]) -> None:
    from launcher.grace import GRACE_SECONDS
    from launcher.kubernetes import Target, manifest, parse_secret, write

    target = Target(
        image=asked.image,
        claim=asked.volume_claim,
        kind=asked.kind,
        name=asked.name,
        namespace=asked.namespace,
        secrets=tuple(parse_secret(text) for text in asked.secret),
        grace_seconds=asked.grace or GRACE_SECONDS,
    )
    text = manifest(request_of(asked, flags, environ={}), target)
    print(text, end="") if asked.output is None else write(asked.output, text)


def _status(asked: argparse.Namespace, _flags: tuple[str, ...]) -> None:
    from launcher.watching import runs_here, status

    print("\n\n".join(status(run) for run in asked.run or runs_here()))


def _logs(asked: argparse.Namespace, _flags: tuple[str, ...]) -> None:
    from launcher.watching import logs

    logs(asked.run, follow=asked.follow)


def _stop(asked: argparse.Namespace, _flags: tuple[str, ...]) -> None:
    from launcher.watching import stop

    print(stop(asked.run))


def _doctor(asked: argparse.Namespace, flags: tuple[str, ...]) -> int:
    from launcher.doctor import examine

    return examine(request_of(asked, flags), os.environ)


def _init(asked: argparse.Namespace, _flags: tuple[str, ...]) -> None:
    from launcher.starter import write_starter

    print(write_starter(asked.folder))


def _forward(name: str, words: Sequence[str]) -> int:
    """Become `python -m gradacc_dist.<name>`: same terminal, same signals, same exit code."""
    os.execv(sys.executable, [sys.executable, "-m", f"gradacc_dist.{name}", *words])
