"""The fingerprint: equal for what gives the same result, different for all else."""

import pytest

from gradacc_dist.config.fields import fields, nested
from gradacc_dist.config.resolved import fingerprint
from gradacc_dist.config.schema import Config

# Folders, and what is only shown. Spelled out: a field that leaves the fingerprint is a decision.
WITHOUT_EFFECT = {
    "run.output_dir",
    "run.overwrite",
    "data.cache_dir",
    "track.every_steps",
    "track.sample_tokens",
    "track.wandb",
    "track.project",
    "track.name",
}

OTHER = {
    "boolean": True,
    "integer": 7,
    "number": 0.625,
    "text": "other",
    "path": "other",
    "mapping": {"a": 1},
}


def other_value(field):
    kind = field.kinds[0]
    if kind.name == "choice":
        return next((word for word in kind.choices if word != field.default), None)
    if kind.name == "list":
        return [OTHER[position[0].name] for position in kind.items]
    return not field.default if kind.name == "boolean" else OTHER[kind.name]


@pytest.mark.parametrize("path", fields())
def test_each_field_counts_if_it_determines_the_result(path):
    value = other_value(fields()[path])
    if value is None:
        pytest.skip("one legal value only")
    changed = Config.model_validate(nested({path: value}))
    assert (fingerprint(changed) == fingerprint(Config())) is (path in WITHOUT_EFFECT)


def test_what_is_left_out_exists():
    assert set(fields()) >= WITHOUT_EFFECT


def test_the_order_of_keys_does_not_count():
    one = Config.model_validate({"model": {"config": {"a": 1, "b": {0: "x", "y": 2}}}})
    two = Config.model_validate({"model": {"config": {"b": {"y": 2, 0: "x"}, "a": 1}}})
    assert fingerprint(one) == fingerprint(two)
    assert len(fingerprint(one)) == 64
