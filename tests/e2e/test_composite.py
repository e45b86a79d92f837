"""The main job with a method that keeps the weights: parts are audited, saved and told."""

import json

import pytest
import torch
from small_recipes import PEOPLE

from expunge.models.language import read_language_model
from expunge.pipeline.execute import execute
from expunge.pipeline.recipe import make_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    forget = {"name": "uld", "alpha": 1.0, "schedule": {"epochs": 3, "batch_size": 2}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        recipe = make_recipe({**PEOPLE, "forget": forget, "examples": 1})
        return execute(recipe, tmp_path_factory.mktemp("runs") / "run", quiet=True)


def test_the_assistant_is_audited_alone_and_the_target_is_the_model_before(folder):
    findings = json.loads((folder / "findings.json").read_text())
    parts = {one["part"] for one in findings if one["subject"] == "part"}
    assert parts == {"assistant"}
    for metric in ("probability", "auc"):
        told = {one["subject"]: one for one in findings if one["metric"] == metric}
        assert told["part"]["value"] is not None
        assert told["part"]["model"] not in (told["before"]["model"], told["after"]["model"])


def test_the_report_and_the_card_say_that_weights_are_as_before(folder):
    report = (folder / "report.html").read_text()
    assert "output-suppressed: weights are as before" in report
    assert "Nothing was erased" in report
    assert "Assistant alone" in report
    assert "This method runs without the collapse guard" in report
    assert "evidence: output-suppressed" in (folder / "MODEL_CARD.md").read_text()
    assert json.loads((folder / "plan.json").read_text())["method"]["evidence"] == (
        "output-suppressed"
    )


def test_the_model_opens_again_and_its_target_in_transformers(folder):
    from transformers import AutoModelForCausalLM

    after = folder / "models" / "after"
    model, tokenizer = read_language_model(str(after))
    bare = AutoModelForCausalLM.from_pretrained(after / "target")
    before, _ = read_language_model(str(folder / "models" / "before"))
    inputs = tokenizer("Who?", return_tensors="pt")
    with torch.no_grad():
        logits = {name: m(**inputs).logits for name, m in (("bare", bare), ("before", before))}
        together = model(**inputs).logits
    assert torch.equal(logits["bare"], logits["before"])
    assert not torch.equal(together, logits["before"])
    assert model.evidence == "output-suppressed"


def test_a_composite_can_be_audited_as_a_model_that_was_changed_elsewhere(folder, tmp_path):
    after = {"name": "transformers", "path": str(folder / "models" / "after")}
    template = json.loads((folder / "models" / "after" / "architecture.json").read_text())
    after["template"] = template["template"]
    source = {**after, "path": str(folder / "models" / "before")}
    recipe = {**PEOPLE, "model": source, "after": after, "references": 0}
    for name in ("train", "forget", "references"):
        recipe.pop(name)
    out = execute(make_recipe(recipe), tmp_path / "audit", quiet=True)
    findings = json.loads((out / "findings.json").read_text())
    assert {one["subject"] for one in findings} == {"before", "after", "part"}
    assert "output-suppressed: weights are as before" in (out / "report.html").read_text()
