"""The image, as built and as run: as whom, on what, with which secrets, and how it ends (B14, B19).

From the smallest Debian, which has neither Python nor torch.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from image.building import REVISION, SOURCE, VERSION, Built
from launching import ROOT, ledger

pytestmark = pytest.mark.cluster

# Long enough that no test sees the end of it.
ENDLESS = ("--schedule.steps", "100000", "--run.overwrite", "false")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A volume that any user can write to. What one test has tokenised the others find there."""
    folder = tmp_path_factory.mktemp("workspace")
    folder.chmod(0o1777)
    return folder


def mounted(workspace: Path) -> list[str]:
    return ["--volume", f"{workspace}:/workspace"]


def test_the_image_says_what_it_is(built: Built):
    config = built.engine.inspect(built.name)
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["tini", "--", "gradacc"]
    said = {"version": VERSION, "revision": REVISION, "source": SOURCE, "licenses": "Apache-2.0"}
    labels = {f"org.opencontainers.image.{name}": value for name, value in said.items()}
    assert config["Labels"].items() >= labels.items()


def found_in(path: Path, texts: set[str]) -> set[str]:
    """Those of `texts` that are anywhere in a file."""
    found, before = set(), b""
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            here = before + chunk
            found |= {text for text in texts - found if text.encode() in here}
            before = here[-200:]
    return found


def test_b19_no_secret_is_in_any_layer(built: Built):
    """Nor in the configuration or history. A line of source and a label show that it would be."""
    line = (ROOT / "gradacc_dist" / "denominator.py").read_text().splitlines()[0]
    saved = built.engine.saved(built.name)
    assert found_in(saved, {*built.planted.values(), line, SOURCE}) == {line, SOURCE}
    saved.unlink()


def test_anybody_can_run_it_on_a_read_only_root(built: Built, workspace):
    """Neither the image's own user nor one that it knows of; no network either."""
    options = ["--user", "4711:4712", *mounted(workspace)]
    done = built.engine.run(built.name, options=options)
    assert done.exit_code == 0, done.shown
    assert "gradacc" in done.shown
    done = built.engine.run(built.name, "init", "mine", options=options)
    assert done.exit_code == 0, done.shown
    owner = (workspace / "mine" / "run.yaml").stat()
    assert (owner.st_uid, owner.st_gid) == (4711, 4712)


def test_c3_a_mistake_leaves_with_the_code_of_mistakes(built: Built):
    done = built.engine.run(built.name, "train", "--window.exmaples", "8")
    assert done.exit_code == 10, done.shown
    assert "did you mean" in done.shown


def test_nodes_find_each_other_by_the_environment(built: Built):
    variables = {"NNODES": "3", "NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "1234"}
    options = [word for pair in variables.items() for word in ("--env", "=".join(pair))]
    done = built.engine.run(built.name, "train", "--dry-run", options=options)
    assert done.exit_code == 0, done.shown
    expected = "--num_machines 3 --machine_rank 1 --main_process_ip first --main_process_port 1234"
    assert expected in done.shown


def test_a_base_with_torch_keeps_it(built: Built, base, sources, index, tmp_path):
    """It was built for the base's GPUs. A stand-in: what pip takes for an installed torch."""
    package = tmp_path / "usr" / "lib" / "python3" / "dist-packages" / "torch-2.99.0+gpu.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.99.0+gpu\n")
    built.engine.derive(base, tmp_path, "localhost/with-torch")
    built.engine.build(
        "localhost/keeps-torch",
        sources,
        *("--target", "torch"),
        secrets=index.secrets,
        environment={},
        BASE_IMAGE="localhost/with-torch",
    )
    words = ["pip", "list", "--format", "freeze"]
    ran = built.engine.run("localhost/keeps-torch", *words)
    assert "torch==2.99.0+gpu" in ran.shown
    ran = built.engine.run("localhost/keeps-torch", "grep", "^torch==", "/build/constraints.txt")
    assert ran.shown.strip() == "torch==2.99.0+gpu"


def test_the_demo_runs(built: Built, workspace):
    steps = ("--schedule.steps", "4", "--schedule.warmup_steps", "1")
    command = ("train", "--ranks", "2", "--run.output_dir", "demo", *steps)
    done = built.engine.run(built.name, *command, options=mounted(workspace))
    assert done.exit_code == 0, done.shown
    lines = ledger(workspace / "demo")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert (workspace / "demo" / "model").is_dir()
    assert (workspace / "demo" / "ledger.jsonl").stat().st_uid == 10001
    assert "2 rank(s)" in done.shown


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_b14_sigterm_to_the_container(built: Built, workspace, ranks):
    """All ranks hear of it, a checkpoint is saved, and the same command goes on from there."""
    output = workspace / f"ranks-{ranks}"
    command = ("train", "--ranks", ranks, "--run.output_dir", output.name, *ENDLESS)
    with built.engine.started(built.name, *command, options=mounted(workspace)) as container:
        container.until_lines(output / "ledger.jsonl", 3)
        container.process.send_signal(signal.SIGTERM)
        assert container.end() == 23, container.shown
    saved = len(ledger(output))
    state = output / "checkpoints" / f"step-{saved:08d}" / "state.json"
    assert json.loads(state.read_text())["step"] == saved
    stop = ("--run.stop_after_steps", str(saved + 2))
    done = built.engine.run(built.name, *command, *stop, options=mounted(workspace))
    assert done.exit_code == 0, done.shown
    assert [line["step"] for line in ledger(output)] == list(range(1, saved + 3))
