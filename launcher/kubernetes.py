"""A run as Kubernetes objects: a plain Indexed Job, or a TrainJob of Kubeflow's trainer.

No cluster is asked. Every pod runs `gradacc train` once, as one node of the run; whether another
takes its place, its exit code says (decisions.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from gradacc_dist.config.load import load
from gradacc_dist.config.resolved import Resolved
from gradacc_dist.errors import ConfigError, DiskError
from launcher import jobs
from launcher.grace import GRACE_SECONDS, mistake_of_grace
from launcher.pod import CONFIG_FILE, CONFIG_FOLDER, WORKSPACE, Object, Pod, Secret
from launcher.request import Nodes, Request
from launcher.yaml_text import commented, documents

LABEL_LENGTH = 63
"""Of a host's name, at most."""


@dataclass(frozen=True)
class Target:
    """Where on Kubernetes a run is to go. `name`: None for the last part of run.output_dir."""

    image: str
    claim: str
    kind: Literal["job", "trainjob"] = "job"
    name: str | None = None
    namespace: str | None = None
    secrets: tuple[Secret, ...] = ()
    grace_seconds: int = GRACE_SECONDS

    def host(self, name: str, node: int) -> str:
        """The host name of a node of the run called `name`."""
        return f"{name}-node-0-{node}" if self.kind == "trainjob" else f"{name}-{node}"


def parse_secret(text: str) -> Secret:
    """Of `NAME` or `NAME:KEY:KEY`. Raises ConfigError, which repeats nothing: it may be a value."""
    name, *keys = text.split(":")
    if not _is_object_name(name) or not all(re.fullmatch(r"[A-Za-z_]\w*", key) for key in keys):
        raise ConfigError(
            "--secret: needs NAME, or NAME:KEY, of a Secret of the cluster, and never a value "
            "(what was given is not repeated here); kubectl create secret generic makes one"
        )
    return Secret(name, tuple(keys))


def manifest(request: Request, target: Target) -> str:
    """The YAML of the run, as kubectl takes it. Raises ConfigError with every mistake."""
    name, config_text = _checked(request, target)
    hosts = [target.host(name, node) for node in range(request.nodes.maximum)]
    objects = [] if config_text is None else [jobs.config_map(name, config_text)]
    if target.kind == "trainjob":
        pod = _pod(request, target, name, jobs.environ_of_train_job(hosts))
        objects.append(jobs.training_runtime(name, pod))
        objects.append(jobs.train_job(name, len(hosts), pod.ranks))
    else:
        pod = _pod(request, target, name, jobs.environ_of_job(name, hosts))
        objects += [jobs.service(name)] if len(hosts) > 1 else []
        objects.append(jobs.job(name, len(hosts), pod))
    if target.namespace is not None:
        objects = [jobs.within(target.namespace, each) for each in objects]
    return commented(_heading(request, target, name)) + documents(objects)


def write(path: Path, text: str) -> None:
    """Write a manifest, over one that is there. Raises DiskError."""
    with DiskError.naming(path):
        path.write_text(text, encoding="utf-8")


def _pod(request: Request, target: Target, name: str, environ: tuple[Object, ...]) -> Pod:
    ranks = request.ranks or 1
    config = None if request.config is None else Path(CONFIG_FOLDER, CONFIG_FILE)
    # How many nodes there are, the environment says, as it says which of them this is.
    words = replace(request, config=config, nodes=Nodes(), ranks=ranks).command_line()
    return Pod(
        image=target.image,
        words=("train", *words),
        environ=environ,
        ranks=ranks,
        num_gpus=0 if request.cpu else ranks,
        claim=target.claim,
        config=None if config is None else name,
        secrets=target.secrets,
        grace_seconds=target.grace_seconds,
    )


def _checked(request: Request, target: Target) -> tuple[str, str | None]:
    """The run's name and the text of its configuration; ConfigError names every mistake."""
    name, text = target.name or "", None
    mistakes = list(_mistakes(request, target))
    num_ranks = (request.ranks or 1) * request.nodes.minimum
    try:
        # As the pods will find it: what this machine's environment says does not matter there.
        resolved = load(request.config, request.run_flags, {"WORLD_SIZE": str(num_ranks)})
        if request.config is not None:
            text = request.config.expanduser().read_text(encoding="utf-8-sig")
        name = name or _suggested(resolved)
        mistakes += _mistakes_of_run(resolved, target)
        mistakes += _mistakes_of_engine(request, resolved)
    except ConfigError as error:
        mistakes.append(str(error))
    if name:
        mistakes += _mistakes_of_name(name, request, target)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return name, text


def _mistakes(request: Request, target: Target) -> Iterator[str]:
    if request.nodes.is_elastic:
        yield (
            f"--nodes: got {request.nodes}, but a job has a fixed number of nodes; give one number "
            "(a node that is lost is replaced, and the run goes on from its checkpoint)"
        )
    if request.ranks is None and not request.cpu:
        yield "--ranks: not given; how many GPUs has each node? (or --cpu, for CPU ranks)"
    if not target.image.strip():
        yield "--image: is empty; needs the image that the nodes run"
    for option, name in (("--volume-claim", target.claim), ("--namespace", target.namespace)):
        if name is not None and not _is_object_name(name):
            yield f"{option}: got {name!r}; needs a name of Kubernetes: a-z, 0-9, - and dots"


def _mistakes_of_run(resolved: Resolved, target: Target) -> Iterator[str]:
    if mistake := mistake_of_grace(resolved, target.grace_seconds):
        yield mistake
    output = PurePosixPath(resolved.config.run.output_dir)
    is_kept = output.parts[:1] == ("~",) or (PurePosixPath(WORKSPACE) / output).is_relative_to(
        WORKSPACE
    )
    if not is_kept or ".." in output.parts:
        yield (
            f"run.output_dir: got {output} ({resolved.source('run.output_dir')}), which ends with "
            f"the pod; the volume is at {WORKSPACE}, and a relative path is below it"
        )


def _mistakes_of_engine(request: Request, resolved: Resolved) -> Iterator[str]:
    """--engine means a file of the image. Any other is read here, where it is checked, and again in
    the pod, which has none of this machine's."""
    path = resolved.config.engine.deepspeed
    if path is None or request.engine is not None:
        return
    if ".." in path.parts or not path.is_relative_to(WORKSPACE):
        yield (
            f"engine.deepspeed: got {path} ({resolved.source('engine.deepspeed')}), which no pod "
            "has; take a file that is shipped, such as --engine zero2, or put it on the volume and "
            f"give its path there, below {WORKSPACE} (and the same here, to be checked)"
        )


def _mistakes_of_name(name: str, request: Request, target: Target) -> Iterator[str]:
    last = target.host(name, request.nodes.maximum - 1)
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"--name: got {name!r}; needs a-z, 0-9 and -, from a letter on"
    elif len(last) > LABEL_LENGTH:
        too_many = len(last) - LABEL_LENGTH
        yield (
            f"--name: {name} is {too_many} too long: the last node is called {last}, and a host's "
            f"name has at most {LABEL_LENGTH} characters"
        )


def _suggested(resolved: Resolved) -> str:
    """A name made of the last part of run.output_dir."""
    return re.sub(r"[^a-z0-9]+", "-", resolved.config.run.output_dir.name.lower()).strip("-")


def _is_object_name(text: str) -> bool:
    return len(text) <= 253 and bool(re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", text))


def _heading(request: Request, target: Target, name: str) -> str:
    device = "CPU" if request.cpu else "GPU"
    kubectl = "kubectl" if target.namespace is None else f"kubectl --namespace {target.namespace}"
    first = f"app.kubernetes.io/instance={name},{jobs.INDEX_LABEL}=0"
    shared = ", by all nodes at once (ReadWriteMany)" if request.nodes.maximum > 1 else ""
    needs = [f"volume claim {target.claim}, mounted at {WORKSPACE}{shared}"]
    needs += [f"secret {each.name}{_keys(each)}" for each in target.secrets]
    needs += ["Kubeflow's trainer, version 2"] if target.kind == "trainjob" else []
    return f"""\
{name}: {request.nodes} node(s) of {request.ranks or 1} {device} rank(s) each
by gradacc manifest --kubernetes

  start   {kubectl} create -f THIS_FILE
  watch   {kubectl} logs -f -l {first}
  stop    {kubectl} delete -f THIS_FILE     (the run saves a checkpoint and leaves)

What must be there before:
""" + "".join(f"  {need}\n" for need in needs)


def _keys(secret: Secret) -> str:
    return f" with {', '.join(secret.keys)}" if secret.keys else ""
