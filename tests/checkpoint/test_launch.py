"""Which orders a launch that is started again has carried out already."""

import pytest
from checkpoint.test_beginning import begin, dumped, leave, steps

from gradacc_dist.checkpoint.launch import LAUNCH, launch_id
from gradacc_dist.errors import ConfigError
from gradacc_dist.exits import LAUNCH_ID


def test_the_launcher_names_the_launch():
    assert launch_id({LAUNCH_ID: "job-7"}) == "job-7"
    assert launch_id({LAUNCH_ID: ""}) is launch_id({}) is None


@pytest.mark.parametrize("orders", [{"overwrite": True}, {"resume": "never"}], ids=str)
def test_a_launch_that_is_started_again_goes_on(tmp_path, orders):
    """Neither deleted nor refused; another launch, or a person, orders anew."""
    assert begin(tmp_path, launch="a", **orders).notes == ()
    leave(tmp_path, 2, 4)
    for _ in range(2):
        found = begin(tmp_path, launch="a", **orders)
        assert found.step == 4
        assert found.notes[0].startswith("launch a is started again: run.overwrite: ")
        assert len([note for note in found.notes if "launch" in note]) == 1
    for launch in ("b", None):
        if "overwrite" in orders:
            assert begin(tmp_path, launch=launch, **orders).step == 0
            assert (tmp_path / LAUNCH).exists() is (launch is not None)
            leave(tmp_path, 2, 4)
        else:
            with pytest.raises(ConfigError, match=r"--run.resume auto to continue it"):
                begin(tmp_path, launch=launch, **orders)


def test_an_older_checkpoint_is_gone_back_to_once(tmp_path):
    checkpoints = leave(tmp_path, 2, 3, 4) / "checkpoints"
    chosen = {"resume": str(checkpoints / "step-00000002")}
    assert begin(tmp_path, launch="a", **chosen).step == 2
    leave(tmp_path, 2, 5)
    assert begin(tmp_path, launch="a", **chosen).step == 5
    assert len(list(checkpoints.glob("abandoned-*"))) == 1
    assert begin(tmp_path, launch="b", **chosen).step == 2


def test_anothers_checkpoint_is_begun_from_until_there_is_an_own_one(tmp_path):
    source, new = leave(tmp_path / "source", 3), tmp_path / "new"
    chosen = {"resume": str(source)}
    assert begin(new, launch="a", **chosen).step == 3
    (new / "config.resolved.yaml").write_text(dumped(new))
    assert begin(new, launch="a", **chosen).step == 3
    leave(new, 5)
    assert begin(new, launch="a", **chosen).step == 5
    with pytest.raises(ConfigError, match="holds an earlier run"):
        begin(new, launch="b", **chosen)


def test_a_launch_that_ended_before_its_first_checkpoint_begins_anew(tmp_path):
    begin(tmp_path, launch="a", overwrite=True)
    leave(tmp_path)
    found = begin(tmp_path, launch="a", overwrite=True)
    assert found.step == 0
    assert "an earlier try made 5 step(s) and no checkpoint: it begins anew" in found.notes
    assert not (tmp_path / "ledger.jsonl").exists()


def test_the_run_stays_that_of_the_launch_that_began_it(tmp_path):
    """Whoever goes on with it meanwhile: the first launch must not delete what came of it."""
    begin(tmp_path, launch="a", overwrite=True)
    leave(tmp_path, 4)
    assert begin(tmp_path, launch="b").step == 4
    assert begin(tmp_path).step == 4
    assert begin(tmp_path, launch="a", overwrite=True).step == 4
    assert steps(tmp_path) == [1, 2, 3, 3, 4]
