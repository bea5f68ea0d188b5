"""What every family has, run over `FAMILIES`."""

import pytest

from audiolm_jax.errors import InputError
from audiolm_jax.families import FAMILIES, published


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_keeps_the_contract(name):
    module = published.module(name)
    assert set(module.TUNED) <= set(module.TYPES)
    assert all(isinstance(file, str) for file in module.FILES)
    for function in ("read", "save", "of_run", "write"):
        assert callable(getattr(module, function))


def test_every_type_of_config_json_belongs_to_one_family():
    types = [kind for name in FAMILIES for kind in published.module(name).TYPES]
    assert len(types) == len(set(types))


def test_a_family_of_a_newer_version_is_named():
    with pytest.raises(InputError, match=r"family 'whale', which this version lacks; it has musicgen"):
        published.module("whale")
