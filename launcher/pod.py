"""The pod of one node of a run: what runs in it, what it may do, and what its end means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Object = dict[str, object]
"""A Kubernetes object, or a part of one, as it is written to YAML."""

Decision = Literal["FailJob", "Ignore", "Count"]
"""FailJob: nobody starts it again. Ignore: start again; it was no failure. Count: start again,
but not for ever."""

DECISIONS: Mapping[int, Decision] = MappingProxyType(
    {
        1: "Count",  # nobody knows why; the next try may tell
        10: "FailJob",  # configuration
        11: "FailJob",  # data
        12: "FailJob",  # checkpoint
        20: "Count",  # a rank hung
        21: "Count",  # a rank or node is gone
        22: "FailJob",  # not finite: it would be so again
        23: "Ignore",  # was asked to leave, and saved
        24: "FailJob",  # no step forward; so far only batch jobs of SLURM count tries and say it
        25: "FailJob",  # disk
    }
)
"""What each exit code asks of Kubernetes. A code that is not here counts (137: killed)."""

CONTAINER = "node"  # Kubeflow's trainer looks for this name
USER_ID = 10001  # the image's
WORKSPACE = "/workspace"
CONFIG = "config"
CONFIG_FOLDER = "/etc/gradacc"
CONFIG_FILE = "run.yaml"

# NCCL and the ranks' loaders share memory by way of it; a container's own has 64 MiB. It is a
# limit and no reservation, but what is used counts as the pod's memory.
SHM_SIZE = "8Gi"


@dataclass(frozen=True)
class Secret:
    """A Secret of the cluster, by name. `keys`: which of its entries; () for all."""

    name: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pod:
    """One node's pod. `words` follow `gradacc`; `config`: name of the ConfigMap, if there is one.

    `num_gpus` is 0 for CPU ranks; `claim` names the volume that is mounted at /workspace.
    """

    image: str
    words: tuple[str, ...]
    environ: tuple[Object, ...]
    ranks: int
    num_gpus: int
    claim: str
    config: str | None
    secrets: tuple[Secret, ...]
    grace_seconds: int

    def spec(self) -> Object:
        """As a pod template takes it."""
        return {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.grace_seconds,
            # No variables for each Service of the namespace (one named `master` would set
            # MASTER_PORT), and no key to the cluster: the run asks nothing of it.
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                # Not every file of a large volume at each start.
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [self._container()],
            "volumes": [{"name": name, **source} for name, _, source in self._volumes()],
        }

    def _container(self) -> Object:
        every_key = [
            {"secretRef": {"name": secret.name}} for secret in self.secrets if not secret.keys
        ]
        return {
            "name": CONTAINER,
            "image": self.image,
            "workingDir": WORKSPACE,
            "args": [unexpanded(word) for word in self.words],
            "env": [*self.environ, *_named_keys(self.secrets)],
            **({"envFrom": every_key} if every_key else {}),
            "resources": _resources(self.ranks, self.num_gpus),
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            },
            "volumeMounts": [
                {"name": name, "mountPath": path, **({"readOnly": True} if name == CONFIG else {})}
                for name, path, _ in self._volumes()
            ],
        }

    def _volumes(self) -> list[tuple[str, str, Object]]:
        """Name, place, and what it is: beside these the pod can write nowhere."""
        volumes: list[tuple[str, str, Object]] = [
            ("workspace", WORKSPACE, {"persistentVolumeClaim": {"claimName": self.claim}}),
            ("tmp", "/tmp", {"emptyDir": {}}),
            ("shm", "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": SHM_SIZE}}),
        ]
        if self.config is not None:
            volumes.append((CONFIG, CONFIG_FOLDER, {"configMap": {"name": self.config}}))
        return volumes


def variable(name: str, value: str) -> Object:
    """An environment variable with a value that is known now."""
    return {"name": name, "value": value}


def variable_of_pod(name: str, field: str) -> Object:
    """An environment variable with what the cluster notes in the pod's metadata."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.{field}"}}}


def unexpanded(text: str) -> str:
    """`text` as Kubernetes leaves it: it would put variables for $(NAME), and $ for each $$."""
    return text.replace("$", "$$")


def failure_policy() -> Object:
    """Which ends of a pod end the job, and which are started again. The first match decides."""

    def on_codes(action: Decision) -> Object:
        codes = [code for code, decision in DECISIONS.items() if decision == action]
        return {
            "action": action,
            "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": codes},
        }

    disrupted: Object = {"type": "DisruptionTarget", "status": "True"}
    return {
        "rules": [
            on_codes("FailJob"),
            on_codes("Ignore"),
            # Evicted, preempted, or its node drained or lost: nothing that the run did.
            {"action": "Ignore", "onPodConditions": [disrupted]},
            on_codes("Count"),
        ]
    }


def _named_keys(secrets: Sequence[Secret]) -> list[Object]:
    return [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": key}}}
        for secret in secrets
        for key in secret.keys
    ]


def _resources(ranks: int, num_gpus: int) -> Object:
    if num_gpus:
        return {"limits": {"nvidia.com/gpu": str(num_gpus)}}
    return {"requests": {"cpu": str(ranks)}}
