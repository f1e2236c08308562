"""`gradacc manifest --kubernetes`: valid, complete, and saying of each end what it means."""

import argparse
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from expected import assert_golden
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime, TrainerV1alpha1TrainJob

from gradacc_dist import errors
from gradacc_dist.errors import ConfigError
from launcher import cli
from launcher.decisions import DECISIONS
from launcher.kubernetes import Target, manifest, parse_secret
from launcher.machine import Machine
from launcher.place import place_of
from launcher.plan import plan
from launcher.pod import Secret, unexpanded
from launcher.request import Nodes, Request

# The oldest that the help speaks of, and the newest known.
VERSIONS = ("1.29", "1.37")

RUN = """\
# What the run is: the same text on every cluster.
run: {output_dir: runs/tiny}
model: {config: {model_type: llama, hidden_size: 64}, tokenizer: embedded}
schedule: {steps: 100}
"""
IMAGE = "registry.example/gradacc:0.1.0"
SECRETS = (Secret("wandb", ("WANDB_API_KEY",)), Secret("hub"))

GPUS = Request(ranks=8, nodes=Nodes(2, 2), engine="zero2", flags=("--track.wandb", "online"))
CASES = {
    "job_one_node": (Request(ranks=2, cpu=True), Target(IMAGE, "disk")),
    "job_two_nodes": (GPUS, Target(IMAGE, "disk", secrets=SECRETS, namespace="research")),
    "trainjob": (GPUS, Target(IMAGE, "disk", "trainjob", secrets=SECRETS)),
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "any.yaml"
    path.write_text(RUN)
    return path


@pytest.mark.parametrize("by", ["flag", "file"])
def test_a_deepspeed_file_that_no_pod_has(by, config, tmp_path):
    mine = tmp_path / "mine.json"
    mine.write_text('{"zero_optimization": {"stage": 2}}')
    flags = ("--engine.deepspeed", str(mine)) if by == "flag" else ()
    if by == "file":
        config.write_text(f"{RUN}engine: {{deepspeed: {mine}}}\n")
    request = Request(config=config, ranks=8, flags=flags)
    with pytest.raises(ConfigError, match=r"engine.deepspeed: got .*mine.json .*--engine zero2"):
        manifest(request, Target(IMAGE, "disk"))
    assert "--engine" in manifest(Request(config, (), 8, engine="zero2"), Target(IMAGE, "disk"))


def test_a_deepspeed_file_of_the_volume_is_let_through(config, tmp_path, monkeypatch):
    """Where it can be read here, too."""
    (tmp_path / "mine.json").write_text('{"zero_optimization": {"stage": 2}}')
    flags = ("--engine.deepspeed", str(tmp_path / "mine.json"))
    monkeypatch.setattr("launcher.kubernetes.WORKSPACE", str(tmp_path))
    request = Request(config, (*flags, "--run.output_dir", "runs/a"), 8)
    assert "mine.json" in manifest(request, Target(IMAGE, "disk"))


def text_of(case: str, config: Path) -> str:
    request, target = CASES[case]
    # The one of one node is the packaged demo: no file, and no ConfigMap.
    return manifest(
        Request(**{**vars(request), "config": config}) if "one" not in case else request, target
    )


def objects_of(text: str) -> dict[str, dict]:
    """By kind; each stands at most once in a manifest."""
    found = list(yaml.safe_load_all(text))
    by_kind = {each["kind"]: each for each in found}
    assert len(by_kind) == len(found)
    return by_kind


def job_spec_of(objects: dict[str, dict]) -> dict:
    """What the Job is made of, with Kubeflow's as without."""
    if "Job" in objects:
        return objects["Job"]["spec"]
    (replicated,) = objects["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod_spec_of(objects: dict[str, dict]) -> dict:
    return job_spec_of(objects)["template"]["spec"]


def container_of(objects: dict[str, dict]) -> dict:
    (container,) = pod_spec_of(objects)["containers"]
    return container


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_the_golden_files(case, config):
    assert_golden(f"{case}.yaml", text_of(case, config))


# Kubernetes' own kinds.


def validate(each: dict, version: str) -> None:
    kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_core_kinds_are_valid(case, version, config):
    objects = objects_of(text_of(case, config))
    for kind, each in objects.items():
        if kind not in ("TrainJob", "TrainingRuntime"):
            validate(each, version)
    # What a TrainingRuntime says of pods is judged as the Job that it becomes.
    validate({"apiVersion": "batch/v1", "kind": "Job", "spec": job_spec_of(objects)}, version)


def test_a_core_kind_with_an_unknown_key_is_refused(config):
    for place in (job_spec_of, pod_spec_of, container_of):
        objects = objects_of(text_of("job_two_nodes", config))
        place(objects)["restartPolicies"] = "Never"
        with pytest.raises(kubernetes_validate.ValidationError, match="restartPolicies"):
            validate(objects["Job"], VERSIONS[-1])


# Kubeflow's kinds: its models let unknown keys pass, so what comes back is compared.

MODELS = {"TrainJob": TrainerV1alpha1TrainJob, "TrainingRuntime": TrainerV1alpha1TrainingRuntime}


def lost(sent: object, back: object, path: str = "") -> set[str]:
    """Paths of what was sent and did not come back as it was."""
    if isinstance(sent, dict) and isinstance(back, dict):
        return {
            one
            for key, value in sent.items()
            for one in (
                {f"{path}.{key}"} if key not in back else lost(value, back[key], f"{path}.{key}")
            )
        }
    if isinstance(sent, list) and isinstance(back, list) and len(sent) == len(back):
        pairs = enumerate(zip(sent, back, strict=True))
        return {one for number, pair in pairs for one in lost(*pair, f"{path}[{number}]")}
    return set() if sent == back else {path}


def lost_by_kubeflow(each: dict) -> set[str]:
    return lost(each, MODELS[each["kind"]].from_dict(each).to_dict())


@pytest.mark.parametrize("kind", MODELS)
def test_kubeflow_knows_all_that_is_said(kind, config):
    assert lost_by_kubeflow(objects_of(text_of("trainjob", config))[kind]) == set()


@pytest.mark.parametrize(
    ("kind", "place", "path"),
    [
        ("TrainJob", lambda o: o["TrainJob"]["spec"], ".spec.planted"),
        ("TrainJob", lambda o: o["TrainJob"]["spec"]["trainer"], ".spec.trainer.planted"),
        (
            "TrainingRuntime",
            container_of,
            ".spec.template.spec.replicatedJobs[0].template.spec.template.spec.containers[0].planted",
        ),
        (
            "TrainingRuntime",
            lambda o: o["TrainingRuntime"]["spec"]["template"]["spec"]["failurePolicy"],
            ".spec.template.spec.failurePolicy.planted",
        ),
    ],
)
def test_a_key_that_kubeflow_does_not_know_is_found(kind, place, path, config):
    objects = objects_of(text_of("trainjob", config))
    place(objects)["planted"] = 1
    assert lost_by_kubeflow(objects[kind]) == {path}


def test_the_train_job_refers_to_the_runtime_that_comes_with_it(config):
    objects = objects_of(text_of("trainjob", config))
    reference = objects["TrainJob"]["spec"]["runtimeRef"]
    assert (reference["kind"], reference["name"]) == ("TrainingRuntime", "tiny")
    assert objects["TrainingRuntime"]["metadata"]["name"] == "tiny"


# Exit codes.


def decided(policy: dict, code: int, *, disrupted: bool = False) -> str:
    """What Kubernetes does about a failed pod: the first rule that matches, else it counts."""
    for rule in policy["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["operator"] == "In"
            matches = code in rule["onExitCodes"]["values"]
        else:
            (condition,) = rule["onPodConditions"]
            assert condition == {"type": "DisruptionTarget", "status": "True"}
            matches = disrupted
        if matches:
            return rule["action"]
    return "Count"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("code", "disrupted", "action"),
    [
        (1, False, "Count"),
        (10, False, "FailJob"),
        (11, False, "FailJob"),
        (12, False, "FailJob"),
        (20, False, "Count"),
        (21, False, "Count"),
        (22, False, "FailJob"),
        (23, False, "Ignore"),
        (24, False, "FailJob"),
        (25, False, "FailJob"),
        (137, False, "Count"),  # out of memory
        (137, True, "Ignore"),  # evicted, and not in time
        (21, True, "Ignore"),
        (23, True, "Ignore"),
        (10, True, "FailJob"),  # whoever evicted it, it would fail again
    ],
)
def test_an_exit_code_decides_what_becomes_of_the_job(case, code, disrupted, action, config):
    spec = job_spec_of(objects_of(text_of(case, config)))
    assert decided(spec["podFailurePolicy"], code, disrupted=disrupted) == action
    # Kubernetes asks for it: a container that is restarted in place is no failed pod.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def exit_codes(error: type[errors.GradaccError]) -> set[int]:
    return {error.exit_code}.union(*map(exit_codes, error.__subclasses__()))


def test_every_exit_code_has_a_decision():
    assert exit_codes(errors.GradaccError) <= set(DECISIONS)


def test_failures_of_all_nodes_count_as_one_try(config):
    two = job_spec_of(objects_of(text_of("job_two_nodes", config)))
    one = job_spec_of(objects_of(text_of("job_one_node", config)))
    assert two["backoffLimit"] == 2 * one["backoffLimit"] > 0


# What a pod is told.


def run_environ(objects: dict[str, dict], index: int) -> dict[str, str]:
    """The environment of a pod, as the Job's controller and the kubelet make it."""
    pod = {
        "metadata.annotations['batch.kubernetes.io/job-completion-index']": str(index),
        "metadata.labels['batch.kubernetes.io/controller-uid']": "uid-of-the-job",
        "metadata.labels['jobset.sigs.k8s.io/jobset-uid']": "uid-of-the-jobset",
    }
    environ: dict[str, str] = {}
    for each in container_of(objects)["env"]:
        source = each.get("valueFrom", {})
        if "secretKeyRef" in source:
            continue
        reference = source.get("fieldRef", {}).get("fieldPath")
        environ[each["name"]] = pod[reference] if reference else expanded(each["value"])
    return environ


def expanded(text: str) -> str:
    """What Kubernetes makes of an argument: $$ is $, and $(NAME) a variable's value."""
    return re.sub(r"\$(\$|\((\w+)\))", lambda m: "$" if m[1] == "$" else f"<{m[2]}>", text)


def asked_in_pod(objects: dict[str, dict], environ: dict[str, str]) -> Request:
    """What the image's entry point, gradacc, makes of the arguments."""
    words = [expanded(word) for word in container_of(objects)["args"]]
    asked, flags = cli._parser().parse_known_args(words)
    assert asked.command == "train"
    return cli.request_of(asked, tuple(flags), environ)


def test_each_pod_finds_its_place(config):
    objects = objects_of(text_of("job_two_nodes", config))
    service = objects["Service"]["spec"]
    labels = {"batch.kubernetes.io/job-name": objects["Job"]["metadata"]["name"]}
    assert service["selector"] == labels
    # The name is there before the pod is ready, and it is where the pods' subdomain says.
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    assert pod_spec_of(objects)["subdomain"] == objects["Service"]["metadata"]["name"] == "tiny"
    for index in range(2):
        environ = run_environ(objects, index)
        request = asked_in_pod(objects, environ)
        assert request == Request(**{**vars(GPUS), "config": Path("/etc/gradacc/run.yaml")})
        place = place_of(environ, request.nodes)
        assert (place.rank, place.host, place.port) == (index, "tiny-0.tiny", 29500)
        assert place.names == ("tiny-0", "tiny-1")
        assert environ["GRADACC_LAUNCH_ID"] == "uid-of-the-job"
        command = plan(request, Machine("h", 8, 8), place, "id", Path("exits"))
        assert ("--machine_rank", str(index)) in zip(command.argv, command.argv[1:], strict=False)


def test_each_pod_of_kubeflow_finds_its_place(config):
    objects = objects_of(text_of("trainjob", config))
    trainer = objects["TrainJob"]["spec"]["trainer"]
    for index in range(2):
        # What the trainer's controller adds (version 2.1).
        theirs = {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_NODE_RANK": str(index),
            "PET_MASTER_ADDR": "tiny-node-0-0.tiny",
            "PET_MASTER_PORT": "29400",
        }
        environ = run_environ(objects, index) | theirs
        request = asked_in_pod(objects, environ)
        assert request.nodes == Nodes(2, 2)
        assert request.ranks == 8
        place = place_of(environ, request.nodes)
        assert (place.rank, place.host, place.port) == (index, "tiny-node-0-0.tiny", 29400)
        assert place.names == ("tiny-node-0-0", "tiny-node-0-1")
        assert environ["GRADACC_LAUNCH_ID"] == "uid-of-the-jobset"


AWKWARD = [
    "two words",
    'it\'s "quoted"',
    "$(HOME)",
    "$$(HOME) $$ $",
    "back\\slash",
    "line\nbreak",
    "tab\there ",
    "é 日本 \U0001f600",
    "# no comment",
    "- [a, {b: c}]",
    "",
    "=",
]
# Numbers, truths and dates to one reader of YAML or another.
LOOK_ALIKES = ["1e3", "2e-5", "y", "N", "on", "no", "0o17", "0x1f", "1_000", "~", "null", "1:30"]


def test_awkward_words_arrive_as_they_are():
    words = [*AWKWARD, *LOOK_ALIKES]
    flags = tuple(f"--track.name={word}" for word in words)
    text = manifest(Request(ranks=1, flags=flags[:1]), Target(IMAGE, "disk"))
    assert "two words" in text
    for word, flag in zip(words, flags, strict=True):
        objects = objects_of(manifest(Request(ranks=1, flags=(flag,)), Target(IMAGE, "disk")))
        assert asked_in_pod(objects, {}).flags == (flag,), word


@pytest.mark.parametrize("word", [*LOOK_ALIKES, "29500"])
def test_no_reader_of_yaml_takes_a_word_for_anything_else(word):
    text = manifest(Request(ranks=1, flags=("--track.name", word)), Target(IMAGE, "disk"))
    assert re.search(rf"- (['\"]){re.escape(word)}\1\n", text)


@pytest.mark.parametrize("text", ["a$b", "$(A)", "$$", "$$$(A)$", "$(unclosed", "$"])
def test_kubernetes_leaves_what_was_said(text):
    assert expanded(unexpanded(text)) == text


@pytest.mark.parametrize(
    "ending", ["", "\n\n", "  # trailing \t\n", "# ---\n# $(HOME) $$ é\n", "# \\n '\"\n"]
)
def test_the_configuration_arrives_to_the_letter(ending, config):
    config.write_text(RUN + ending)
    found = objects_of(text_of("job_two_nodes", config))["ConfigMap"]
    assert found["data"] == {"run.yaml": RUN + ending}
    assert found["immutable"] is True


# What a pod may do.


@pytest.mark.parametrize("case", CASES)
def test_pods_run_without_rights(case, config):
    objects = objects_of(text_of(case, config))
    pod, container = pod_spec_of(objects), container_of(objects)
    assert (
        pod["securityContext"].items()
        >= {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }.items()
    )
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert pod["automountServiceAccountToken"] is False
    places = {each["mountPath"]: each for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert {"/workspace", "/tmp", "/dev/shm"} <= set(places)
    shm = volumes[places["/dev/shm"]["name"]]["emptyDir"]
    assert shm["medium"] == "Memory"
    assert shm["sizeLimit"]
    assert all(each.get("readOnly") for path, each in places.items() if path == "/etc/gradacc")


def test_gpus_are_asked_for_and_cpu_ranks_get_none(config):
    gpus = container_of(objects_of(text_of("job_two_nodes", config)))["resources"]
    assert gpus == {"limits": {"nvidia.com/gpu": "8"}}
    cores = container_of(objects_of(text_of("job_one_node", config)))["resources"]
    assert cores == {"requests": {"cpu": "2"}}


@pytest.mark.parametrize("case", ["job_two_nodes", "trainjob"])
def test_b19_secrets_are_named_and_never_written(case, config, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "sentinel-of-a-key")
    text = text_of(case, config)
    assert "sentinel" not in text
    container = container_of(objects_of(text))
    key = {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}
    assert {"name": "WANDB_API_KEY", "valueFrom": key} in container["env"]
    assert container["envFrom"] == [{"secretRef": {"name": "hub"}}]


@pytest.mark.parametrize(
    "given", ["WANDB_API_KEY=s3cr3t", "wandb:KEY=s3cr3t", "hf_S3CR3T", ":K", ""]
)
def test_b19_a_value_in_place_of_a_secrets_name_is_refused_and_not_repeated(given):
    with pytest.raises(ConfigError, match="--secret: needs NAME") as caught:
        parse_secret(given)
    assert "3" not in str(caught.value)


# Time to save in.


@pytest.mark.parametrize("case", CASES)
def test_b14_there_is_time_to_save(case, config):
    """84 GB at 200 MB/s, after ranks that wait for each other as long as they may by default."""
    grace = pod_spec_of(objects_of(text_of(case, config)))["terminationGracePeriodSeconds"]
    assert grace >= 84e9 / 200e6
    assert grace >= 300


def test_b14_less_time_than_ranks_may_wait_is_refused():
    flags = ("--engine.timeout_seconds", "1200")
    with pytest.raises(ConfigError) as caught:
        manifest(Request(ranks=1, flags=flags), Target(IMAGE, "disk"))
    assert "--grace: got 600, but engine.timeout_seconds is 1200 (--engine" in str(caught.value)
    manifest(Request(ranks=1, flags=flags), Target(IMAGE, "disk", grace_seconds=1500))


# The command.

COMMAND = ["manifest", "--kubernetes", "--image", IMAGE, "--volume-claim", "disk"]


def test_the_command_prints_what_the_function_returns(config, capsys):
    words = ["--nodes", "2", "--ranks", "8", "--engine", "zero2", "--namespace", "research"]
    secrets = ["--secret", "wandb:WANDB_API_KEY", "--secret", "hub", "--track.wandb", "online"]
    assert cli.main([*COMMAND, "--config", str(config), *words, *secrets]) == 0
    assert capsys.readouterr().out == text_of("job_two_nodes", config)


def test_the_command_writes_a_file(tmp_path, capsys):
    path = tmp_path / "job.yaml"
    words = ["--cpu", "--ranks", "2", "--output", str(path)]
    assert cli.main([*COMMAND, *words]) == 0
    assert capsys.readouterr().out == ""
    assert path.read_text() == manifest(*CASES["job_one_node"])
    assert cli.main([*COMMAND, *words[:-1], str(tmp_path / "no" / "job.yaml")]) == 25


def test_c3_all_mistakes_at_once_and_nothing_written(tmp_path, capsys):
    path = tmp_path / "job.yaml"
    words = [
        *("--nodes", "2:8", "--name", "A_b", "--namespace", "x y", "--grace", "30"),
        *("--run.output_dir", "/data/out", "--output", str(path)),
    ]
    assert cli.main([*COMMAND, *words]) == 10
    told = capsys.readouterr().err
    for name in ("--nodes", "--ranks", "--name", "--namespace", "--grace", "run.output_dir"):
        assert f"{name}: " in told, name
    assert "2:8" in told
    assert "fixed number of nodes" in told
    assert cli.main([*COMMAND, *words, "--window.exampels", "3"]) == 10
    told = capsys.readouterr().err
    assert "did you mean --window.examples?" in told
    assert "--nodes: " in told
    assert not path.exists()


@pytest.mark.parametrize("output", ["/data/out", "../out", "runs/../../out", "/workspace/../out"])
def test_outputs_that_end_with_the_pod_are_refused(output):
    with pytest.raises(ConfigError, match="which ends with the pod; the volume is at /workspace"):
        manifest(Request(ranks=1, flags=("--run.output_dir", output)), Target(IMAGE, "disk"))


@pytest.mark.parametrize("output", ["out", "/workspace/out", "~/out"])
def test_outputs_on_the_volume_are_taken_and_name_the_job(output):
    flags = ("--run.output_dir", f"{output}/My Run_2")
    objects = objects_of(manifest(Request(ranks=1, flags=flags), Target(IMAGE, "disk")))
    assert objects["Job"]["metadata"]["name"] == "my-run-2"


@pytest.mark.parametrize(("kind", "longest"), [("job", 61), ("trainjob", 54)])
def test_names_leave_room_for_the_hosts(kind, longest):
    request = Request(ranks=1)
    manifest(request, Target(IMAGE, "disk", kind, name="a" * longest))
    with pytest.raises(ConfigError, match=r"is 1 too long: the last node is called a+-"):
        manifest(request, Target(IMAGE, "disk", kind, name="a" * (longest + 1)))


def test_image_and_claim_must_be_named(capsys):
    assert cli.main(["manifest", "--kubernetes", "--ranks", "1"]) == 10
    assert re.search("--image.*--volume-claim", capsys.readouterr().err)


def test_the_environment_of_whoever_asks_does_not_matter(monkeypatch, capsys):
    words = [*COMMAND, "--cpu", "--engine", "single"]
    assert cli.main(words) == 0
    before = capsys.readouterr().out
    for name, value in {"NNODES": "4", "NODE_RANK": "1", "WORLD_SIZE": "9"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(words) == 0
    assert capsys.readouterr().out == before


def test_c3_the_run_is_checked_for_the_ranks_it_will_have(capsys):
    assert cli.main([*COMMAND, "--cpu", "--nodes", "2", "--engine", "single"]) == 10
    assert "engine.name" in capsys.readouterr().err


def test_secrets_are_taken_apart():
    assert parse_secret("hub") == Secret("hub")
    assert parse_secret("a.b-c:ONE:TWO") == Secret("a.b-c", ("ONE", "TWO"))
    assert isinstance(cli._parser(), argparse.ArgumentParser)
