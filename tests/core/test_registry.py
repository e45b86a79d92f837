import importlib.metadata
import sys

import pytest

from expunge.core.errors import ConfigError
from expunge.core.registry import Registry


@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    """A package with one public part, one private module, and a registry that searches it."""
    folder = tmp_path / "catalogue"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from expunge.core.registry import Registry\nparts = Registry('parts', 'catalogue')\n"
    )
    (folder / "alpha.py").write_text(
        "from catalogue import parts\n@parts.register('alpha')\ndef alpha():\n    return 1\n"
    )
    (folder / "_private.py").write_text("raise RuntimeError('must not be imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("catalogue").parts
    for name in [name for name in sys.modules if name.split(".")[0] == "catalogue"]:
        del sys.modules[name]


def test_discovers_public_modules_and_nothing_else(catalogue):
    assert catalogue.names() == ["alpha"]
    assert catalogue.get("alpha")() == 1
    assert "alpha" in catalogue
    assert "beta" not in catalogue


def test_discovers_entry_points_of_installed_packages(catalogue, tmp_path, monkeypatch):
    (tmp_path / "plugin.py").write_text(
        "from catalogue import parts\nparts.register('gamma')('from a plugin')\n"
    )
    point = importlib.metadata.EntryPoint("gamma", "plugin", "expunge.parts")
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [point] if group == point.group else []
    )
    assert catalogue.get("gamma") == "from a plugin"
    del sys.modules["plugin"]


def test_unknown_name_offers_near_matches(catalogue):
    with pytest.raises(ConfigError, match=r"no parts entry 'alpah'; did you mean 'alpha'\?"):
        catalogue.get("alpah")


def test_a_name_is_registered_once():
    registry = Registry("parts", "unused")
    registry.register("npo")(1)
    with pytest.raises(ConfigError, match="'npo' is registered twice"):
        registry.register("npo")(2)


@pytest.mark.parametrize("name", ["NPO", "grad-diff", "", "1st", "a b"])
def test_names_are_lower_case_with_underscores(name):
    with pytest.raises(ConfigError, match="lower case with underscores"):
        Registry("parts", "unused").register(name)


def test_iterates_in_the_order_of_names(catalogue):
    catalogue.register("zeta")("last")
    catalogue.register("aaa")("first")
    assert [part for part in catalogue if isinstance(part, str)] == ["first", "last"]
    assert catalogue.names() == ["aaa", "alpha", "zeta"]
