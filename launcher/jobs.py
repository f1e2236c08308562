"""The objects around the pods of a run: what starts them, and how they find each other."""

from __future__ import annotations

from collections.abc import Sequence

from gradacc_dist.exits import LAUNCH_ID
from launcher.launches import KIND
from launcher.place import DEFAULT_PORT, NAMES
from launcher.pod import CONFIG_FILE, Object, Pod, failure_policy, variable, variable_of_pod

# As often as Kubernetes itself would try again. It counts tries, whether a run got further or not.
RESTARTS = 6

TRAINER = "trainer.kubeflow.org"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
INDEX = f"annotations['{INDEX_LABEL}']"
JOB_ID = "labels['batch.kubernetes.io/controller-uid']"
JOBSET_ID = "labels['jobset.sigs.k8s.io/jobset-uid']"


def config_map(name: str, text: str) -> Object:
    """The configuration. It cannot change: a node that is replaced must find what the others do."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(name),
        "immutable": True,
        "data": {CONFIG_FILE: text},
    }


def service(name: str) -> Object:
    """Gives each pod of the job a name, before it is ready: nodes become ready by meeting."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(name),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": name},
            "ports": [{"name": "rendezvous", "port": DEFAULT_PORT}],
        },
    }


def job(name: str, num_nodes: int, pod: Pod) -> Object:
    """A plain Indexed Job: one index a node. The pods of `service` are at HOST.name."""
    subdomain: Object = {"subdomain": name} if num_nodes > 1 else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(name),
        "spec": {
            "completionMode": "Indexed",
            "completions": num_nodes,
            "parallelism": num_nodes,
            # One lost node takes the ranks of all others with it, and each of them counts.
            "backoffLimit": RESTARTS * num_nodes,
            "podFailurePolicy": failure_policy(),
            "template": {
                "metadata": {"labels": _labels(name)},
                "spec": {**subdomain, **pod.spec()},
            },
        },
    }


def environ_of_job(name: str, hosts: Sequence[str]) -> tuple[Object, ...]:
    """What tells a pod of `job` its place. The job's own id outlives its pods."""
    place = [
        variable("NNODES", str(len(hosts))),
        variable_of_pod("NODE_RANK", INDEX),
        variable("MASTER_ADDR", f"{hosts[0]}.{name}"),
        variable("MASTER_PORT", str(DEFAULT_PORT)),
    ]
    return (*(place if len(hosts) > 1 else []), *_environ(hosts, JOB_ID))


def training_runtime(name: str, pod: Pod) -> Object:
    """What a TrainJob refers to.

    Of its own, as a TrainJob alone cannot say what exit codes mean. The JobSet made of it starts
    all nodes anew after a failure that counts, and ends with a job that its policy has ended.
    """
    template: Object = {"metadata": {"labels": _labels(name)}, "spec": pod.spec()}
    node: Object = {
        "name": "node",
        "template": {
            "metadata": {"labels": {f"{TRAINER}/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "completionMode": "Indexed",
                "backoffLimit": 0,
                "podFailurePolicy": failure_policy(),
                "template": template,
            },
        },
    }
    final: Object = {
        "name": "final",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    policy: Object = {"maxRestarts": RESTARTS, "rules": [final]}
    return {
        "apiVersion": f"{TRAINER}/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": _metadata(name, {f"{TRAINER}/framework": "torch"}),
        "spec": {
            "mlPolicy": {"numNodes": 1, "torch": {}},
            "template": {"spec": {"failurePolicy": policy, "replicatedJobs": [node]}},
        },
    }


def train_job(name: str, num_nodes: int, ranks: int) -> Object:
    """The run itself; the trainer's controller makes a JobSet of it and of its runtime."""
    return {
        "apiVersion": f"{TRAINER}/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(name),
        "spec": {
            "runtimeRef": {"apiGroup": TRAINER, "kind": "TrainingRuntime", "name": name},
            "trainer": {"numNodes": num_nodes, "numProcPerNode": ranks},
        },
    }


def environ_of_train_job(hosts: Sequence[str]) -> tuple[Object, ...]:
    """What the trainer's own variables (PET_...) do not tell a pod."""
    return _environ(hosts, JOBSET_ID)


def within(namespace: str, each: Object) -> Object:
    """The same object, in a namespace."""
    metadata = each["metadata"]
    assert isinstance(metadata, dict), "every object has a name"
    return {**each, "metadata": {"name": metadata["name"], "namespace": namespace, **metadata}}


def _environ(hosts: Sequence[str], launch_id: str) -> tuple[Object, ...]:
    return (
        variable(NAMES, ",".join(hosts)),
        variable(KIND, "kubernetes"),
        variable_of_pod(LAUNCH_ID, launch_id),
    )


def _metadata(name: str, labels: Object | None = None) -> Object:
    return {"name": name, "labels": {**_labels(name), **(labels or {})}}


def _labels(name: str) -> Object:
    return {"app.kubernetes.io/name": "gradacc", "app.kubernetes.io/instance": name}
