"""The grid of a comparison: its cells, their order and names, what they are given, and what is refused."""

import pytest

from audiolm_jax import config
from audiolm_jax.compare import cells
from audiolm_jax.errors import InputError

SHARE = {"rows_per_step": 4, "training_steps": 9}


def planned(*changes: str, sizes: dict | None = None) -> list[cells.Cell]:
    tiny = config.load("tiny", [f"compare.{change}" for change in changes])
    tiny.unlock().compare.sizes = sizes or {}
    config.check(tiny)
    parts = cells.variants(tiny, 3)
    return cells.schedule(tiny, parts, dict.fromkeys(parts, SHARE))


def test_one_seed_and_one_size_are_named_by_their_strategy():
    schedule = planned("strategies=delay,masked")
    assert [(cell.name, cell.entry, cell.strategy, cell.size, cell.seed) for cell in schedule] == [
        ("delay", "delay", "delay", "", 0),
        ("masked", "masked", "masked", "", 0),
    ]
    assert [cell.config.data.batch_size for cell in schedule] == [4, 4]
    assert [cell.config.training.steps for cell in schedule] == [9, 9]


def test_a_grid_goes_seed_by_seed():
    schedule = planned("strategies=delay,flat", "seeds=3,5", sizes={"small": {"layers": 1, "width": 32}, "base": {}})
    names = [f"{strategy}-{size}" for size in ("base", "small") for strategy in ("delay", "flat")]
    assert [cell.name for cell in schedule] == [f"{name}-{seed}" for seed in (3, 5) for name in names]
    assert [cell.entry for cell in schedule] == names * 2
    for cell in schedule:
        assert cell.config.seed == cell.seed
        assert cell.config.serialization.strategy == cell.strategy
        assert (cell.config.model.layers, cell.config.model.width) == ((1, 32) if cell.size == "small" else (2, 64))
    assert [cell.name for cell in planned("strategies=delay", "seeds=3,5", sizes={"only": {}})] == [
        "delay-3",
        "delay-5",
    ]


def test_options_go_to_the_strategies_that_have_them():
    tiny = config.load("tiny", ["compare.strategies=flat,delay,masked", "serialization.delays=0,2,4"])
    delays = {strategy: part.serialization.delays for (_, strategy), part in cells.variants(tiny, 3).items()}
    assert delays == {"flat": (), "delay": (0, 2, 4), "masked": ()}
    with pytest.raises(InputError, match="delays"):
        cells.variants(config.load("tiny", ["compare.strategies=flat", "serialization.delays=0,2,4"]), 3)
    with pytest.raises(InputError, match="delays"):
        cells.variants(config.load("tiny", ["compare.strategies=flat,delay", "serialization.delays=2,1,0"]), 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("strategies=delay,zigzag", "zigzag"),
        ("strategies=()", "one or more"),
        ("strategies=delay,delay", "once"),
        ("seeds=1,1", "each once"),
        ("seeds=-1", "each an integer >= 0"),
        ("seeds=0.5,1", "each an integer >= 0"),
        ("equal=steps", "one of flops, tokens"),
        ("flops=-1", "must be a number >= 0"),
    ],
)
def test_compare_refuses(text, expected):
    with pytest.raises(InputError, match=expected):
        config.check(config.load("tiny", [f"compare.{text}"]))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (
            {"small": {"layerz": 1}},
            r"compare.sizes.small.layerz does not exist; did you mean compare.sizes.small.layers\?",
        ),
        ({"small": {"layers": 1.5}}, "compare.sizes.small.layers=1.5 must be an integer"),
        ({"a/b": {}}, "the name 'a/b'"),
        ({"small": 3}, "compare.sizes.small=3 must map"),
        ({"small": {"heads": 3, "kv_heads": 2}}, "heads"),
    ],
)
def test_sizes_that_make_no_model_are_refused(sizes, expected):
    with pytest.raises(InputError, match=expected):
        planned(sizes=sizes)


def test_a_budget_of_flops_is_no_budget_of_tokens():
    with pytest.raises(InputError, match=r"compare\.flops=1e"):
        config.check(config.load("tiny", ["compare.flops=1e9", "compare.equal=tokens"]))
