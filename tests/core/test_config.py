import json
from typing import Annotated, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.config import build, config, fields, override, parse, read_yaml, schema, to_json
from expunge.core.errors import ConfigError


@config
class Optimiser:
    """Settings of an optimiser."""

    lr: Annotated[float, pydantic.Field(gt=0)] = 1e-3
    """Learning rate."""
    steps: int = 10
    """Number of steps."""


@config
class Recipe:
    """Settings that use every kind of value."""

    seed: int
    """Root of all
    randomness."""
    name: str = "npo"
    """Name of the method."""
    mode: Literal["fast", "exact"] = "fast"
    """How to go about it."""
    share: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    """Share of the data."""
    verbose: bool = False
    """Whether to say more."""
    layers: tuple[str, ...] = ()
    """Layers that may move."""
    optimiser: Optimiser = Optimiser()
    """How the weights move."""
    stages: tuple[Optimiser, ...] = ()
    """One optimiser for each stage."""
    limits: dict[str, float] = pydantic.Field(default_factory=dict)
    """Bound of each metric."""


FULL = {
    "seed": 1,
    "name": "salun",
    "mode": "exact",
    "share": 0.5,
    "verbose": True,
    "layers": ["a", "b"],
    "optimiser": {"lr": 0.5, "steps": 3},
    "stages": [{"lr": 0.25, "steps": 1}],
    "limits": {"auc": 0.6},
}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", True, "seed = True: Input should be a valid integer"),
        ("seed", 1.5, "seed = 1.5: Input should be a valid integer"),
        ("seed", "1", "seed = '1': Input should be a valid integer"),
        ("seed", None, "seed = None: Input should be a valid integer"),
        ("name", 5, "name = 5: Input should be a valid string"),
        ("mode", "slow", "mode = 'slow': Input should be 'fast' or 'exact'"),
        ("share", "0.5", "share = '0.5': Input should be a valid number"),
        ("share", True, "share = True: Input should be a valid number"),
        ("share", 1.01, "share = 1.01: Input should be less than or equal to 1"),
        ("share", float("nan"), "must be a finite number"),
        ("share", float("inf"), "must be a finite number"),
        ("share", {1, 2}, "must be a finite number, text"),
        ("verbose", 1, "verbose = 1: Input should be a valid boolean"),
        ("verbose", "yes", "verbose = 'yes': Input should be a valid boolean"),
        ("layers", "a", "layers = 'a': Input should be a valid array"),
        ("optimiser", {"lr": 0}, "optimiser.lr = 0: Input should be greater than 0"),
        ("optimiser", {"lrr": 1}, r"unknown setting 'optimiser.lrr'; did you mean 'lr'\?"),
        ("stages", [{"step": 1}], r"unknown setting 'stages.0.step'; did you mean 'steps'\?"),
        ("limits", {"auc": "x"}, "limits.auc = 'x': Input should be a valid number"),
        ("sead", 1, r"unknown setting 'sead'; did you mean 'seed'\?"),
        ("zzzz", 1, "unknown setting 'zzzz'; known: layers, limits, mode, name, optimiser, seed"),
    ],
)
def test_parse_is_strict(key, value, message):
    with pytest.raises(ConfigError, match=rf"^recipe: .*{message}"):
        parse(Recipe, {"seed": 1, key: value}, "recipe")


@pytest.mark.parametrize("share", [1, 0, 0.25, None])
def test_parse_takes_an_int_where_a_float_is_due(share):
    assert parse(Recipe, {"seed": 1, "share": share}, "recipe").share == share


def test_every_problem_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        parse(Recipe, {"nam": "npo", "mode": 1, "optimiser": {"lr": -1}}, "recipe")
    message = str(caught.value)
    assert message.startswith("recipe: 4 problems\n")
    assert "setting 'seed' is required" in message
    assert "unknown setting 'nam'; did you mean 'name'?" in message
    assert "mode = 1" in message
    assert "optimiser.lr = -1" in message


def test_long_values_are_shortened_in_messages():
    with pytest.raises(ConfigError) as caught:
        parse(Recipe, {"seed": "9" * 1000}, "recipe")
    assert len(str(caught.value)) < 200


def test_nested_settings_given_in_part_keep_their_defaults():
    recipe = parse(Recipe, {"seed": 1, "optimiser": {"steps": 3}}, "recipe")
    assert recipe.optimiser == Optimiser(lr=1e-3, steps=3)


def test_build_explains_like_parse():
    assert build(Recipe, "Recipe", seed=3).seed == 3
    with pytest.raises(ConfigError, match=r"Recipe: unknown setting 'sed'; did you mean 'seed'\?"):
        build(Recipe, "Recipe", seed=1, sed=3)
    with pytest.raises(ConfigError, match="Recipe: setting 'seed' is required"):
        build(Recipe, "Recipe")


def test_settings_are_frozen_and_keyword_only():
    recipe = Recipe(seed=1)
    with pytest.raises(AttributeError):
        recipe.seed = 2
    with pytest.raises((TypeError, pydantic.ValidationError)):
        Recipe(1)


@pytest.mark.parametrize("value", [{"seed": 1}, FULL])
def test_round_trip(value):
    recipe = parse(Recipe, value, "recipe")
    assert parse(Recipe, json.loads(json.dumps(to_json(recipe))), "recipe") == recipe


def test_to_json_gives_back_what_was_parsed():
    assert to_json(parse(Recipe, FULL, "recipe")) == FULL


@given(st.floats(1e-300, 1e300), st.integers(-(2**63), 2**63 - 1), st.text())
def test_round_trip_of_any_number_and_text(lr, seed, name):
    recipe = Recipe(seed=seed, name=name, optimiser=Optimiser(lr=lr))
    assert parse(Recipe, to_json(recipe), "recipe") == recipe


def test_fields_tell_each_setting_in_words():
    told = {field.name: (field.kind, field.default, field.text) for field in fields(Recipe)}
    assert told == {
        "seed": ("integer", "required", "Root of all randomness."),
        "name": ("text", "npo", "Name of the method."),
        "mode": ("one of fast, exact", "fast", "How to go about it."),
        "share": ("number >= 0 and <= 1 or none", "None", "Share of the data."),
        "verbose": ("true or false", "False", "Whether to say more."),
        "layers": ("list of text", "[]", "Layers that may move."),
        "optimiser": ("settings", "{'lr': 0.001, 'steps': 10}", "How the weights move."),
        "stages": ("list of settings", "[]", "One optimiser for each stage."),
        "limits": ("mapping to number", "", "Bound of each metric."),
    }
    assert fields(Optimiser)[0].kind == "number > 0"


def test_schema_carries_descriptions_and_bounds():
    told = schema(Recipe)
    assert told["additionalProperties"] is False
    assert told["required"] == ["seed"]
    assert told["properties"]["name"]["description"] == "Name of the method."
    lr = told["$defs"]["Optimiser"]["properties"]["lr"]
    assert (lr["exclusiveMinimum"], lr["description"]) == (0, "Learning rate.")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-2E+3", -2000.0),
        ("1.5e3", 1500.0),
        ("10", 10),
        ("0.5", 0.5),
        ("1e", "1e"),
        ("e5", "e5"),
        ("true", True),
        ("null", None),
        ("[a, 2]", ["a", 2]),
        ("{a: 1}", {"a": 1}),
        ("", None),
    ],
)
def test_override_reads_the_right_side_as_yaml(text, value):
    assert override({}, [f"x={text}"]) == {"x": value}


def test_override_descends_makes_and_replaces():
    before = {"forget": {"name": "npo", "beta": 0.1}, "audit": "tofu"}
    after = override(before, ["forget.beta=0.5", "audit.limit=3", "new.deep.value=a=b"])
    assert after == {
        "forget": {"name": "npo", "beta": 0.5},
        "audit": {"name": "tofu", "limit": 3},
        "new": {"deep": {"value": "a=b"}},
    }
    assert before == {"forget": {"name": "npo", "beta": 0.1}, "audit": "tofu"}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("beta", "must look like forget.beta=0.5"),
        ("=1", "must look like forget.beta=0.5"),
        ("seed.x=1", "'seed' holds a value, not settings"),
        ("x=[1", "the value is not valid YAML"),
    ],
)
def test_override_refuses(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override({"seed": 1}, [assignment])


def test_read_yaml_takes_a_mapping_with_numbers_as_people_write_them():
    assert read_yaml("lr: 1e-5\nsteps: 10\n", "recipe.yaml") == {"lr": 1e-5, "steps": 10}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "recipe.yaml is not valid YAML"),
        ("- 1", "must be a mapping of settings, not list"),
        ("", "must be a mapping of settings, not NoneType"),
        ("!!python/object/apply:os.getcwd []", "recipe.yaml is not valid YAML"),
    ],
)
def test_read_yaml_refuses(text, message):
    with pytest.raises(ConfigError, match=message):
        read_yaml(text, "recipe.yaml")
