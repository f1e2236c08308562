"""The package as users get it: quick to answer, light to import, whole in a wheel."""

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from launching import ROOT, run

HEAVY = ("torch", "transformers", "accelerate", "datasets", "numpy", "matplotlib", "rich")


@pytest.mark.parametrize("flag", ["--help", "--check"])
def test_p10_help_and_check_import_nothing_heavy(flag):
    program = (
        "import sys; from gradacc_dist.train import main; code = main([sys.argv[1]]);"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = run([sys.executable, "-c", program, flag])
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert "window.examples" in done.stdout


def test_c3_a_mistake_ends_before_torch_is_imported(tmp_path):
    (tmp_path / "run.yaml").write_text("window:\n  exmaples: 8\nschedule:\n  steps: many\n")
    program = (
        "import sys; from gradacc_dist.train import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = run([sys.executable, "-c", program, "--config", str(tmp_path / "run.yaml")])
    assert done.returncode == 10
    assert "run.yaml:2" in done.stderr
    assert "did you mean" in done.stderr
    assert "run.yaml:4" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_example_configuration_is_the_packaged_one():
    packaged = ROOT / "gradacc_dist" / "config" / "demo.yaml"
    assert (ROOT / "configs" / "demo.yaml").read_text() == packaged.read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    # From a copy: setuptools leaves its traces beside the sources.
    copy = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name, follow_symlinks=False)
    subprocess.run([*build, str(copy)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_demo_and_the_license(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "gradacc_dist/config/demo.yaml" in names
    assert "gradacc_dist/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests") for name in names)


def test_the_installed_wheel_runs_the_packaged_demo(wheel, tmp_path):
    """In an environment of its own, far from the sources; the libraries are this one's."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True, symlinks=True)
    python = str(environment / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    ours = subprocess.run(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    # A plain path line: the .pth files over there (the editable sources) are not followed.
    (site / "libraries.pth").write_text(f"{ours}\n")
    done = run(
        [
            *(python, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"),
            *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
            *("-m", "gradacc_dist.train", "--schedule.steps", "2", "--evaluate.examples", "8"),
            *("--schedule.warmup_steps", "1", "--track.sample_tokens", "4"),
        ],
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "demo" / "model" / "model.safetensors").exists()
    where = subprocess.run(
        [python, "-c", "import gradacc_dist; print(gradacc_dist.__file__)"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert where.startswith(str(site))
