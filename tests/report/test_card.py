import yaml

from expunge.report.card import markdown, write_model_card


def test_the_header_is_read_by_programs(run_folder):
    text = write_model_card(run_folder).read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["unlearning"]["records"]["forget"] == 15
    assert header["unlearning"]["retrained_references"] == 2
    assert header["digests"]["run"] == "ab" * 32
    assert header["digests"]["models"]["after"] == "1" * 64
    first = header["findings"][0]
    assert first["gap"] == first["after"] - first["retrained"]


def test_the_body_is_read_by_people(language_run):
    body = write_model_card(language_run).read_text(encoding="utf-8").split("---\n", 2)[2]
    assert "# Model card: smollm2 after npo" in body
    row = next(line for line in body.splitlines() if line.startswith("| Model utility (harm"))
    assert row == (
        "| Model utility (harmonic mean of 9 numbers) | whole model, n = 15 | 0.612 | 0.597 "
        "| 0.537 to 0.657 | 0.607 | \u22120.010 | no bound |"
    )
    assert "    expunge run demo/recipe.yaml --out demo-again" in body


def test_the_same_files_give_the_same_bytes(run_folder):
    first = write_model_card(run_folder).read_bytes()
    assert write_model_card(run_folder).read_bytes() == first


def test_markdown_is_shown_as_text():
    assert markdown("a|b\n# [x](y) <b> & *c*") == "a\\|b \\# \\[x\\](y) &lt;b> &amp; \\*c\\*"
