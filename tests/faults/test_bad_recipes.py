"""Wrong recipes: exit code 2, one message that names the place and the remedy, nothing written."""

import pytest
from refusals import refused
from small_recipes import DIGITS, PEOPLE, write_recipe

WRONG_DIGITS = {
    "unknown ids": ({"request": {"ids": ["nobody"]}}, "1 unknown record ids (nobody)"),
    "id twice": (
        {"request": {"ids": ["digits-00001", "digits-00001"]}},
        "forget set names 1 record ids more than once",
    ),
    "no match": ({"request": {"where": {"y": [77]}}}, "request.where matches no record"),
    "unknown column": ({"request": {"where": {"yy": [1]}}}, "records have no column 'yy'"),
    "too many": ({"request": {"count": 99999}}, "cannot draw 99999 records"),
    "two rules": (
        {"request": {"count": 1, "ids": ["digits-00001"]}},
        "ids and count are given together",
    ),
    "by alone": ({"request": {"by": "y", "ids": ["digits-00001"]}}, "request.by goes with"),
    "no rule": ({"request": None}, "the data source has no split 'forget'"),
    "unknown split": ({"request": {"split": "forgot"}}, "has no split 'forgot'"),
    "absent file": ({"request": {"file": "absent.txt"}}, "cannot read absent.txt"),
    "unknown section": ({"reqest": {}}, "unknown setting 'reqest'; did you mean 'request'?"),
    "unknown setting": (
        {"forget": {"name": "npo", "bta": 1}},
        "unknown setting 'bta'; did you mean 'beta'?",
    ),
    "unknown nested setting": (
        {"train": {"epoch": 1}},
        "unknown setting 'train.epoch'; did you mean 'epochs'?",
    ),
    "unknown method": ({"forget": "salum"}, "did you mean 'salun'?"),
    "unknown audit": ({"audits": ["mai"]}, "did you mean 'mia'?"),
    "unknown source": ({"data": "digit"}, "did you mean 'digits'?"),
    "unknown model": ({"model": "mpl"}, "did you mean 'mlp'"),
    "unknown tracker": ({"machine": {"trackers": ["tensorbord"]}}, "did you mean 'tensorboard'?"),
    "unknown device": ({"machine": {"device": "abacus"}}, "abacus"),
    "text for a number": ({"train": {"epochs": "ten"}}, "train.epochs = 'ten'"),
    "true for a number": ({"references": True}, "references = True"),
    "out of range": ({"request": {"fraction": 1.5}}, "request.fraction = 1.5"),
    "list for settings": ({"train": [1]}, "train"),
    "no data": ({"data": None}, "setting 'data' is required"),
    "no model": ({"model": None}, "setting 'model' is required"),
    "no method": ({"forget": None}, "give either `forget` (a method) or `after`"),
    "method and model": ({"after": "mlp"}, "give either `forget` (a method) or `after`"),
    "part without name": ({"forget": {"beta": 1.0}}, "recipe.forget: name is missing"),
    "references without training": ({"train": None}, "nothing says how to retrain"),
    "retrain without training": (
        {"train": None, "references": 0, "forget": "retrain"},
        "it needs the model from before training",
    ),
    "language model": ({"model": "tiny_gpt"}, "'tiny_gpt' is a causal_lm"),
    "language audit": ({"audits": ["tofu"]}, "tofu"),
    "language examples": ({"examples": 1}, "shows answers of a language model"),
    "picture too small": ({"model": {"name": "cnn", "channels": [4] * 4}}, "model.cnn"),
    "given model of another kind": (
        {"given_references": ["tiny_gpt"]},
        "'tiny_gpt' is a causal_lm",
    ),
}


@pytest.mark.parametrize("case", WRONG_DIGITS)
def test_a_wrong_recipe_is_refused_before_anything_is_written(case, tmp_path, monkeypatch, capsys):
    changes, expected = WRONG_DIGITS[case]
    recipe = write_recipe(tmp_path / "recipe.yaml", DIGITS, **changes)
    assert expected in refused(monkeypatch, capsys, "run", recipe, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    dry = refused(monkeypatch, capsys, "run", recipe, "--out", tmp_path / "run", "--dry-run")
    assert expected in dry


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "mlp"}, "'mlp' is a classifier"),
        ({"audits": ["unlearning_gap"]}, "unlearning_gap"),
        ({"model": {"name": "tiny_gpt", "heads": 3}}, "heads = 3 does not divide"),
    ],
)
def test_a_wrong_language_recipe_is_refused(changes, expected, tmp_path, monkeypatch, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", PEOPLE, **changes)
    assert expected in refused(monkeypatch, capsys, "run", recipe, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_problem_is_told_at_once(tmp_path, monkeypatch, capsys):
    recipe = write_recipe(tmp_path / "r.yaml", DIGITS, sed=1, references=-1, train={"lr": "x"})
    message = refused(monkeypatch, capsys, "run", recipe)
    assert "3 problems" in message
    assert all(name in message for name in ("'sed'", "references = -1", "train.lr"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [", "is not valid YAML"),
        (b"- a\n- b", "must be a mapping of settings, not list"),
        (b"", "must be a mapping of settings, not NoneType"),
        (b"\xff\xfe\x00", "cannot read recipe"),
        (b"x: !!python/object/apply:os.system [true]", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content, expected, tmp_path, monkeypatch, capsys):
    (tmp_path / "recipe.yaml").write_bytes(content)
    assert expected in refused(monkeypatch, capsys, "run", tmp_path / "recipe.yaml")


def test_an_absent_recipe_and_a_folder_are_refused(tmp_path, monkeypatch, capsys):
    assert "cannot read recipe" in refused(monkeypatch, capsys, "run", tmp_path / "absent.yaml")
    assert "cannot read recipe" in refused(monkeypatch, capsys, "run", tmp_path)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("forget.beta", "must look like forget.beta=0.5"),
        ("seed.x=1", "'seed' holds a value, not settings"),
        ("seed=[", "the value is not valid YAML"),
        ("forget.schedule.epoch=1", "did you mean 'epochs'?"),
    ],
)
def test_a_wrong_assignment_is_refused(assignment, expected, tmp_path, monkeypatch, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", {**DIGITS, "seed": 0})
    message = refused(
        monkeypatch, capsys, "run", recipe, "--set", assignment, "--out", tmp_path / "run"
    )
    assert expected in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["", "\n\n", "[]", "[1, 2]"])
def test_an_empty_list_of_ids_is_refused(content, tmp_path, monkeypatch, capsys):
    (tmp_path / "ids.txt").write_text(content)
    request = {"file": str(tmp_path / "ids.txt")}
    recipe = write_recipe(tmp_path / "recipe.yaml", DIGITS, request=request)
    assert "at least one" in refused(monkeypatch, capsys, "run", recipe, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
