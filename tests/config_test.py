"""Configurations: keys, the values they take, files, overrides, and modules of the user's by name."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from audiolm_jax import config
from audiolm_jax.config import key, validate
from audiolm_jax.errors import InputError
from audiolm_jax.training.config import OptimizerConfig

TABLE = {"json": json, "late": "os.path"}
KEYS = config.keys()


@dataclasses.dataclass(frozen=True)
class Example:
    count: int = key(1, "A count.", at_least=1, at_most=3)
    share: float = key(0.5, "A share.", above=0, below=1)
    kind: str = key("a", "A kind.", among=("a", "b"))
    flag: bool = key(False, "A flag.")
    sizes: tuple[int, ...] = key((), "Sizes.", at_least=1)
    names: tuple[str, ...] = key(("a",), "Names.", among=("a", "b"), filled=True)
    path: str | None = key(None, "A path.")
    module: str = key("json", "A module.", among=TABLE)

    def __post_init__(self) -> None:
        validate(self, "example")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"count": 0}, "example.count=0 must be an integer >= 1 and <= 3"),
        ({"count": 4}, "example.count=4 must be an integer >= 1 and <= 3"),
        ({"count": True}, "example.count=True must be an integer"),
        ({"count": 1.0}, "example.count=1.0 must be an integer"),
        ({"count": "1"}, "example.count=1 must be an integer"),
        ({"count": 10**30}, "must be an integer >= 1 and <= 3"),
        ({"share": 0}, "example.share=0 must be a number > 0 and < 1"),
        ({"share": 1.0}, "example.share=1.0 must be a number > 0 and < 1"),
        ({"share": math.nan}, "example.share=nan must be a number"),
        ({"share": math.inf}, "example.share=inf must be a number"),
        ({"share": 10**400}, "must be a number > 0 and < 1"),
        ({"share": None}, "example.share=None must be a number"),
        ({"kind": "c"}, "example.kind=c must be one of a, b"),
        ({"kind": ["a"]}, r"example.kind=\['a'\] must be one of a, b"),
        ({"flag": 1}, "example.flag=1 must be True or False"),
        ({"sizes": (1, 0)}, r"example.sizes=\(1, 0\) must be a tuple of items, each an integer >= 1"),
        ({"sizes": {"a": 1}}, "must be a tuple of items"),
        ({"names": ()}, r"example.names=\(\) must be a tuple of one or more items, each one of a, b"),
        ({"names": ("a", "c")}, "each one of a, b"),
        ({"path": 3}, "example.path=3 must be text or None"),
        ({"module": "jsn"}, "example.module=jsn must be one of json, late, or a module such as my_package.my_module"),
    ],
)
def test_a_value_that_does_not_fit_is_one_sentence(values, expected):
    with pytest.raises(InputError, match=expected) as caught:
        Example(**values)
    assert "\n" not in str(caught.value)


def test_values_that_fit_are_taken_as_they_are():
    example = Example(count=3, share=0.999, kind="b", flag=True, sizes=[2, 3], names="b", path="x", module="my.own")
    assert dataclasses.astuple(example) == (3, 0.999, "b", True, (2, 3), ("b",), "x", "my.own")
    assert type(OptimizerConfig(weight_decay=0).weight_decay) is int  # an int is a float


@pytest.mark.parametrize("known", KEYS.values(), ids=lambda known: known.path)
def test_every_key_says_what_it_means_and_takes_its_default_and_its_bounds(known):
    assert known.meaning.endswith(".") and known.meaning[0] != " "
    assert known.check(known.default) == known.default
    wrap = (lambda value: (value,)) if isinstance(known.default, tuple) else lambda value: value
    step = 1 if "int" in str(known.kind) else 1e-9
    for name, bound in known.bounds.items():
        inside, outside = {
            "at_least": (bound, bound - step),
            "at_most": (bound, bound + step),
            "above": (bound + step, bound),
            "below": (bound - step, bound),
        }[name]
        assert known.check(wrap(inside)) == wrap(inside)
        with pytest.raises(InputError, match=known.path):
            known.check(wrap(outside))
    for wrong in (object(), [object()], math.nan, 10**400, b"x"):
        with pytest.raises(InputError, match=known.path):
            known.check(wrong)


def test_every_section_validates_its_keys():
    for name in config.SECTIONS:
        for known in config.keys_of(config.accepts(name), name).values():
            with pytest.raises(InputError, match=f"{known.path}="):
                config.accepts(name)(**{known.path.rpartition(".")[2]: object()})


def test_a_key_that_is_added_to_a_dataclass_is_accepted_at_once(monkeypatch, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Longer(OptimizerConfig):
        momentum: float = key(0.25, "A momentum.", at_least=0)

    accepts = config.accepts
    monkeypatch.setattr(config, "accepts", lambda name: Longer if name == "optimizer" else accepts(name))
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import default\ndef get_config():\n    c = default.get_config()\n    c.optimizer.momentum = 0.5\n"
        "    return c\n"
    )
    assert config.load("tiny").optimizer.momentum == 0.25
    assert config.section(config.load(str(path)), "optimizer").momentum == 0.5
    assert config.load("tiny", ["optimizer.momentum=1"]).optimizer.momentum == 1.0
    with pytest.raises(InputError, match=r"optimizer.momentum=-1.0 must be a number >= 0"):
        config.check(config.load("tiny", ["optimizer.momentum=-1"]))


def test_a_file_may_leave_out_keys_and_sections(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n"
        "    return ConfigDict({'model': {'layers': 3}, 'sampling': {'top_k': [5]}})\n"
    )
    loaded = config.load(str(path), ["model.width=32"])
    config.check(loaded)
    expected = config.defaults()
    expected.model.update({"layers": 3, "width": 32})
    assert {**loaded.to_dict(), "sampling": None} == {**expected.to_dict(), "sampling": None}
    assert config.section(loaded, "sampling").top_k == (5,)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("c.seed = -1", "seed=-1 must be an integer >= 0 and <= 4294967295"),
        ("c.seed = 2**32", "seed=4294967296 must be"),
        ("del c['model']; c.model = 3", "config section model is 3; it must map keys to values"),
        ("c.sead = 3", "config section sead does not exist; did you mean seed"),
        ("c.evaluation.draws = 0", "evaluation.draws=0 must be an integer >= 1"),
        ("c.corpus.min_seconds = float('nan')", "corpus.min_seconds=nan must be a number >= 0"),
    ],
)
def test_a_wrong_value_in_a_file_is_named_by_check(line, expected, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f"from configs import default\ndef get_config():\n    c = default.get_config()\n    {line}\n    return c\n"
    )
    with pytest.raises(InputError, match=expected):
        config.check(config.load(str(path)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.layrs=3", "no such key; did you mean model.layers?"),
        ("modell.layers=3", "did you mean model.layers"),
        ("sede=3", "did you mean seed"),
        ("qqqq.zzzz=3", "the top-level keys are codec, compare"),
        ("compare.sizes=3", "compare.sizes is a section; its keys are set in a configuration file"),
        ("seed=" + "9" * 5000, "must be an integer"),
        (
            "sampling.top_k=a,b",
            r"must be a tuple of one or more items, each an integer >= 0, as in sampling.top_k=\(0,\)",
        ),
        ("codec.codebooks=two", "must be an integer >= 1 or None, as in codec.codebooks=None"),
    ],
)
def test_overrides_that_do_not_fit_are_one_sentence(text, expected):
    with pytest.raises(InputError, match=expected):
        config.load("default", [text])


def test_overrides_know_the_type_of_a_key_that_is_none_and_of_keys_of_sizes(tmp_path):
    assert config.load("default", ["codec.path=7"]).codec.path == "7"
    assert config.load("tiny", ["codec.codebooks=None"]).codec.codebooks is None
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import default\ndef get_config():\n    c = default.get_config()\n"
        "    c.compare.sizes = {'small': {'layers': 2}}\n    return c\n"
    )
    assert config.load(str(path), ["compare.sizes.small.layers=3"]).compare.sizes.small.layers == 3
    with pytest.raises(InputError, match=r"compare.sizes.small.layers=x must be an integer, as in"):
        config.load(str(path), ["compare.sizes.small.layers=x"])


def test_checking_a_configuration_imports_no_network():
    program = (
        "import sys; from audiolm_jax import config; config.check(config.load('demo', ['model.layers=2'])); "
        "print([name for name in sys.modules if name in ('jax', 'flax', 'grain', 'optax', 'audiolm_jax.codecs.dac')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_matrices_and_budgets_have_the_names_that_their_keys_take():
    from audiolm_jax.compare.report.schema import EQUAL
    from audiolm_jax.model import lora

    assert KEYS["lora.matrices"].among == tuple(lora.MATRICES)
    assert KEYS["compare.equal"].among == tuple(EQUAL)


def test_a_plugin_is_of_the_table_or_a_module_of_the_users(tmp_path, monkeypatch):
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "mine.py").write_text("def load():\n    return 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert config.plugin("codec.name", "json", TABLE) is json
    assert config.plugin("codec.name", "my_package.mine", TABLE, ["load"]).load() == 3
    (tmp_path / "alone_here.py").write_text("def load():\n    return 4\n")
    assert config.plugin("codec.name", "alone_here", TABLE, ["load"]).load() == 4
    for path in ("codec.name", "corpus.name", "serialization.strategy", "compare.strategies"):
        value = ("alone_here",) if path == "compare.strategies" else "alone_here"
        assert KEYS[path].check(value) == value
        with pytest.raises(InputError, match="or a module such as"):
            KEYS[path].check("not_here" if value == "alone_here" else ("not_here",))
    with pytest.raises(InputError, match=r"codec.name=my_package.mine: the module must have a function save"):
        config.plugin("codec.name", "my_package.mine", TABLE, ["load", "save"])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("mine", "", r"x.y=mine must be one of json, late, or a module such as my_package.my_module"),
        (None, "", r"x.y=None must be one of json, late"),
        ("broken_one.no", "", r"x.y=broken_one.no cannot be imported: ModuleNotFoundError: No module named"),
        ("broken_one.fails", "1 / 0", r"cannot be imported: ZeroDivisionError: division by zero; give one of"),
        ("broken_one.typo", "def f(:", r"cannot be imported: SyntaxError: "),
        ("broken_one.stops", "raise SystemExit(1)", r"cannot be imported: SystemExit: 1"),
        (".relative", "", r"cannot be imported: TypeError"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_sentence(name, text, expected, tmp_path, monkeypatch):
    package = tmp_path / "broken_one"
    package.mkdir()
    (package / f"{str(name).rpartition('.')[2]}.py").write_text(text)
    if text == "":
        (package / "no.py").unlink(missing_ok=True)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=expected) as caught:
        config.plugin("x.y", name, TABLE)
    assert "\n" not in str(caught.value)


def test_a_table_may_say_where_to_import_from():
    assert config.plugin("x.y", "late", TABLE).join("a", "b") == "a/b"


@pytest.mark.parametrize(
    "name", ["/no/such/folder/tiny.py", "mine/demo.py", "../mine/size_7b.py", "mine/tiny", "./tiny.py"]
)
def test_a_path_that_is_not_there_is_no_name_of_a_configuration(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no such file; give a path to a .py file or one of .*tiny"):
        config.find(name)
    assert config.find("tiny") == config.find("tiny.py") == config.folder() / "tiny.py"


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.exit(0)",
        "def get_config():\n    raise SystemExit",
        "def get_config():\n    return {'data': {1: 2}}",
        "def get_config():\n    return 3",
        "get_config = 1",
        "def get_config(:",
    ],
)
def test_a_configuration_that_does_not_run_is_named(text, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=r"mine.py does not run: \w+: .*; it must be a Python file with a function"):
        config.load(str(tmp_path / "mine.py"))
