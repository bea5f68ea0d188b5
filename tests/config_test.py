"""Configurations: modules of the user's, by name."""

import json
import sys

import pytest

from audiolm_jax import config
from audiolm_jax.errors import InputError

TABLE = {"json": json, "late": "os.path"}


def test_a_plugin_is_of_the_table_or_a_module_of_the_users(tmp_path, monkeypatch):
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "mine.py").write_text("def load():\n    return 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert config.plugin("codec.name", "json", TABLE) is json
    assert config.plugin("codec.name", "my_package.mine", TABLE, ["load"]).load() == 3
    with pytest.raises(InputError, match=r"codec.name=my_package.mine: the module must have a function save"):
        config.plugin("codec.name", "my_package.mine", TABLE, ["load", "save"])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("mine", "", r"x.y=mine must be one of json, late, or the name of a module with a dot in it"),
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
