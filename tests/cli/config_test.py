"""`audiolm config`: every key with its value and meaning, and what differs from the defaults."""

import dataclasses

import pytest

from audiolm_jax import config
from audiolm_jax.cli import main
from audiolm_jax.config import key
from audiolm_jax.training.config import OptimizerConfig


def printed(capsys, *arguments: str) -> list[str]:
    assert main.main(["config", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    return lines


def test_it_prints_every_key_once_by_section(capsys):
    lines = printed(capsys)
    section, paths = "", []
    for line in lines:
        if line and line[0].isalpha() and ": " in line:
            section = line.partition(":")[0] + "."
        elif line.startswith("  ") and line[2] != " " and " = " in line[:60]:
            paths.append(section + line.split()[0])
    assert paths == list(config.keys())
    text = " ".join(" ".join(lines).split())
    for known in config.keys().values():
        assert known.meaning in text
    assert lines[-1] == f"All {len(paths)} keys have their defaults."


def test_it_marks_what_differs_and_repeats_it_as_overrides(capsys):
    overrides = ["--config.data.template={speaker}: {text}", "--config.sampling.top_k=5,6", "--config.codec.path="]
    lines = printed(capsys, "--config", "tiny", "data", "sampling", *overrides)
    assert [line.split()[1] for line in lines if line.startswith("*")] == [
        "sequence_length",
        "batch_size",
        "template",
        "max_frames",
        "top_k",
    ]
    [top_k] = [line for line in lines if line.startswith("* top_k")]
    assert top_k == "* top_k = 5,6                   Keep the k most likely codes; 0: all. [>= 0] (default: 0)"
    [heading] = [number for number, line in enumerate(lines) if line.endswith("keys differ from the defaults (*):")]
    changed = lines[heading + 1 :]
    assert lines[heading].startswith(f"{len(changed)} of {len(config.keys())} ")
    assert "  '--config.data.template={speaker}: {text}'" in changed
    assert "  --config.sampling.top_k=5,6" in changed
    assert "  --config.model.layers=2" in changed  # of a section that is not printed


def test_what_differs_gives_the_same_configuration_again():
    loaded = config.load("demo", ["evaluation.also=unseen,valid", "compare.seeds=1", "codec.path=my weights"])
    from audiolm_jax.cli.config import argument_text

    values, defaults = config.flat(loaded), config.flat(config.defaults())
    again = [f"{path}={argument_text(value)}" for path, value in values.items() if value != defaults[path]]
    assert len(again) > 20
    assert config.flat(config.load("default", again)) == values


@dataclasses.dataclass(frozen=True)
class Longer(OptimizerConfig):
    momentum: float = key(0.25, "A momentum.", at_least=0, below=1)


def test_a_key_that_is_added_to_a_dataclass_is_printed_at_once(capsys, monkeypatch):
    monkeypatch.setitem(config.SECTIONS, "optimizer", f"{__name__}:Longer")
    lines = printed(capsys, "optimizer", "--config.optimizer.momentum=0.5")
    assert "* momentum = 0.5                A momentum. [>= 0 and < 1] (default: 0.25)" in lines
    assert lines[-1] == "  --config.optimizer.momentum=0.5"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["modle"], "SECTION=modle must be one of corpus, codec"),
        (["modle"], "did you mean model?"),
        (["--config.model.layrs=3"], "did you mean model.layers?"),
        (["--config.model.layers=0"], "model.layers=0 must be an integer >= 1"),
        (["--config.codec.name=mp3"], "codec.name=mp3 must be one of default, tiny"),
        (["--config.corpus.name=no_such.module"], "corpus.name=no_such.module cannot be imported: ModuleNotFoundError"),
        (["--config", "nowhere"], "there is no such file"),
    ],
)
def test_what_does_not_fit_is_one_sentence(capsys, arguments, expected):
    assert main.main(["config", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and expected in err
