"""The text of --help: every field, in 100 columns (C3)."""

from gradacc_dist.config.fields import fields, sections
from gradacc_dist.config.help import WIDTH, help_text


def test_every_section_and_field_is_there():
    text = help_text("python -m gradacc_dist.train", "Train a language model.")
    words = " ".join(text.split())
    assert text.startswith("usage: python -m gradacc_dist.train [--config FILE]")
    assert "Train a language model." in text
    for name, sentence in sections().items():
        assert f"{name}: {sentence}" in words
    for field in fields().values():
        assert f"  --{field.path} " in text
        assert " ".join(field.sentence.split()) in words
    assert "--window.examples INT " in text
    assert "(adamw | sgd; default: adamw)" in words


def test_it_fits_the_terminal():
    lines = help_text("p", "word " * 60).splitlines()
    assert max(len(line) for line in lines) <= WIDTH == 100
    assert not any(line.endswith("(default:") for line in lines)
