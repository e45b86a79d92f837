"""The latent-knowledge audit on planted scores, beside numbers computed otherwise."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from expunge.audit.audit import audits, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.probe import ProbeConfig, probe
from expunge.audit.readings import Reading
from expunge.audit.scores import Scores
from expunge.audit.treatments import GROUP, attacked_ids
from expunge.core.config import parse
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset

CONFIG = ProbeConfig(blocks=(0, 1), probes=("linear",), max_excess=0.05, max_lens_excess=0.05)


def readings(place):
    true = Reading("forget", treatment=f"probe:{place}:0.5:linear")
    return true, dataclasses.replace(true, view="wrong:0.5")


@pytest.fixture
def capitals():
    """Questions with different answers, in words that the tiny model knows."""
    answers = ("oslo on the fjord", "paris", "tokyo by the bay", "lima", "santiago", "madrid")
    return Records(
        tuple(f"capital-{row}" for row in range(len(answers))),
        {"question": ["what is the capital of peru"] * len(answers), "answer": answers},
    )


@pytest.fixture
def make_subject(make_scores):
    """A model whose probes see true answers so far above wrong ones, by block."""

    def make(role, gaps, *, n=120, lens=(0.2, 0.4), seed=None, wrong=0.3):
        scores = {}
        for place, gap in enumerate(gaps):
            random = np.random.default_rng([place, 7])
            noise = random.normal(size=(2, n))
            for side, reading in enumerate(readings(place)):
                logit = noise[side] + gap * (1 - side)
                made = make_scores(-np.log1p(np.exp(-logit)))
                scores[reading] = dataclasses.replace(made, measured={GROUP: np.arange(n)})
            plain = Reading("forget", treatment=f"lens:{place}")
            factor = random.uniform(0.5, 1.5, n)
            scores[plain] = make_scores(np.log(lens[place] * factor))
            other = dataclasses.replace(plain, view="perturbed:0")
            scores[other] = make_scores(np.log(np.full(n, wrong)))
        return Subject(role, f"{role}-{seed}", scores, seed)

    return make


def evidence_of(after, *references, before=None):
    return Evidence(after=after, before=before, references=references, sets="sets", audit="probe")


def by_metric(findings, subject="after"):
    return {finding.metric: finding for finding in findings if finding.subject == subject}


def area(subject, place):
    """The AUC of the records that the attack did not see, by scikit-learn."""
    true, wrong = (subject.scores[reading] for reading in readings(place))
    rows = [row for row, i in enumerate(true.ids) if i not in attacked_ids(true.ids, 0.5, 0)]
    values = np.concatenate([true.logprob_N[rows], wrong.logprob_N[rows]])
    return roc_auc_score(np.repeat([1, 0], len(rows)), values), len(rows)


def test_the_figure_is_the_largest_over_blocks_and_the_excess_is_over_retraining(make_subject):
    after = make_subject("after", (0.5, 1.5))
    references = [
        make_subject("reference", gaps, seed=i) for i, gaps in enumerate([(0, 1), (1, 0)])
    ]
    found = by_metric(probe(evidence_of(after, *references), CONFIG, Run()))
    (low, n), (high, _) = area(after, 0), area(after, 1)
    assert n == 60
    assert found["probe_auc_at_block_0"].value == pytest.approx(low)
    assert found["probe_auc"].value == found["probe_auc_at_block_1"].value == pytest.approx(high)
    assert "block 1" in found["probe_auc"].note
    assert found["probe_auc"].n == n
    standard = np.mean([max(area(one, place)[0] for place in (0, 1)) for one in references])
    excess = found["probe_auc_excess"]
    assert excess.value == pytest.approx(high - standard)
    assert excess.interval.low < excess.value < excess.interval.high
    assert excess.threshold == 0.05


def test_the_lens_gives_mean_probability_and_answers_that_win(make_subject):
    after = make_subject("after", (0, 0), lens=(0.2, 0.4))
    reference = make_subject("reference", (0, 0), lens=(0.2, 0.3), seed=0)
    found = by_metric(probe(evidence_of(after, reference), CONFIG, Run()))
    lens = [after.scores[Reading("forget", treatment=f"lens:{place}")] for place in (0, 1)]
    means = [np.exp(scores.logprob_N).mean() for scores in lens]
    assert found["lens_probability_at_block_0"].value == pytest.approx(means[0])
    assert found["lens_probability"].value == pytest.approx(means[1])
    assert found["lens_probability"].n == 120
    wins = (np.exp(lens[1].logprob_N) > 0.3).mean()
    assert found["lens_knowledge"].value == pytest.approx(wins)
    # 0.4 and 0.3 times the same factors, whose mean is about 1: about 0.1 above.
    excess = found["lens_probability_excess"]
    assert excess.value == pytest.approx(means[1] / 4, rel=1e-5)
    assert excess.verdict == "fail"


@pytest.mark.parametrize(("gap", "verdict"), [(3.0, "fail"), (0.0, "inconclusive")])
def test_verdicts_come_from_the_interval(make_subject, gap, verdict):
    after = make_subject("after", (0, gap))
    reference = make_subject("reference", (0, 0), seed=0)
    found = by_metric(probe(evidence_of(after, reference), CONFIG, Run()))
    assert found["probe_auc_excess"].verdict == verdict
    assert found["probe_auc"].verdict == "not_applicable"


def test_a_model_that_is_as_good_as_retrained_passes_although_its_probe_is_perfect(make_subject):
    same = [
        make_subject(role, (2, 30), seed=s, n=400)
        for role, s in (("after", None), ("reference", 0))
    ]
    found = by_metric(probe(evidence_of(*same), CONFIG, Run()))
    assert found["probe_auc"].value == 1
    assert found["probe_auc"].interval.low < 1
    excess = found["probe_auc_excess"]
    assert excess.value == 0
    # Of 200 records none differs: at most 1 - 0.025^(1/200) = 0.0183 may.
    assert (excess.interval.low, excess.interval.high) == pytest.approx(
        (-0.018275, 0.018275), abs=1e-6
    )
    assert excess.verdict == "pass"


def test_without_references_there_is_a_figure_but_no_excess(make_subject):
    found = by_metric(probe(evidence_of(make_subject("after", (0, 1))), CONFIG, Run()))
    assert found["probe_auc"].value is not None
    assert found["probe_auc_excess"].value is None
    assert found["probe_auc_excess"].verdict == "inconclusive"
    assert "retrained" in found["probe_auc_excess"].note


@pytest.mark.parametrize(
    ("n", "known", "verdict"), [(38, False, "inconclusive"), (80, True, "inconclusive")]
)
def test_few_records_give_no_number_and_some_more_no_verdict(make_subject, n, known, verdict):
    after, reference = make_subject("after", (0, 9), n=n), make_subject("reference", (0, 0), n=n)
    found = by_metric(probe(evidence_of(after, reference), CONFIG, Run()))
    excess = found["probe_auc_excess"]
    assert (excess.value is not None) == known
    assert excess.n == n // 2
    assert excess.verdict == verdict
    assert str(n // 2) in excess.note
    # An unbounded number is not judged.
    free = by_metric(
        probe(evidence_of(after, reference), dataclasses.replace(CONFIG, max_excess=None), Run())
    )
    assert free["probe_auc_excess"].verdict == "not_applicable"


def test_why_a_model_cannot_be_looked_into_is_told(make_subject):
    reasons = {reading: "no stack here" for reading in make_subject("x", (0, 0)).scores}
    after = Subject("after", "m", {}, absent=reasons)
    found = by_metric(probe(evidence_of(after, make_subject("reference", (0, 0))), CONFIG, Run()))
    assert {finding.value for finding in found.values()} == {None}
    assert found["probe_auc"].note == found["lens_probability_at_block_1"].note == "no stack here"
    assert found["probe_auc_excess"].verdict == "inconclusive"


def test_same_seed_same_findings(make_subject):
    evidence = evidence_of(make_subject("after", (1, 1)), make_subject("reference", (0, 1)))
    one, again = (probe(evidence, CONFIG, Run(seed=4)) for _ in range(2))
    assert [finding.digest() for finding in one] == [finding.digest() for finding in again]


def test_readings_fit_the_data(capitals):
    info = audits.get("probe")
    documents = Dataset("causal_lm", Records(("a",), {"text": ["words"]}))
    planned = plan_readings([(info, ProbeConfig(depths=2))], documents)
    assert [reading.treatment for reading in planned] == ["lens:1/2", "lens:2/2"]
    records = capitals.replace(
        perturbed_answer=[["x", "y"]] * len(capitals), paraphrased_answer=["z"] * len(capitals)
    )
    whole = plan_readings([(info, ProbeConfig(blocks=(-1,)))], Dataset("causal_lm", records))
    assert {(reading.view, reading.treatment) for reading in whole} == {
        *((view, "lens:-1") for view in ("answer", "paraphrase", "perturbed:0", "perturbed:1")),
        *((view, "probe:-1:0.5:linear+mlp") for view in ("answer", "wrong:0.5")),
    }
    for wrong, told in (({"share": 1.0}, "share"), ({"probes": []}, "probes")):
        with pytest.raises(ConfigError, match=told):
            parse(ProbeConfig, wrong, "probe")
    with pytest.raises(ConfigError, match="'linear' or 'mlp'"):
        parse(ProbeConfig, {"probes": ["cubic"]}, "probe")


def test_the_whole_audit_on_small_models(make_llama, capitals):
    # Four forget records are too few for numbers; the audit must say so and nothing else.
    (task, fresh), config = make_llama, ProbeConfig(depths=2, max_excess=0.05)
    dataset = Dataset("causal_lm", capitals)
    sets = Sets.partition(capitals.ids, capitals.ids[:4])
    planned = plan_readings([(audits.get("probe"), config)], dataset)
    subjects = [
        collect(fresh(), task, dataset, sets, planned, Run(), role=role)
        for role in ("after", "reference")
    ]
    evidence = Evidence(subjects[0], None, (subjects[1],), sets.digest())
    found = by_metric(run_audit(audits.get("probe"), config, evidence, Run()))
    assert found["lens_probability"].n == 4
    assert "at least 20" in found["lens_probability"].note
    assert found["probe_auc_excess"].verdict == "inconclusive"
    assert found["lens_knowledge"].note == "no forget record has wrong answers"


def both(role, logits, seed=None):
    """A model whose two probes give true and wrong answers such logits (side, record, probe)."""
    made, n = {}, logits.shape[1]
    for side, view in enumerate(("answer", "wrong:0.5")):
        reading = Reading("forget", view, treatment="probe:0:0.5:linear+mlp")
        made[reading] = Scores(
            ids=tuple(f"r-{row}" for row in range(n)),
            offsets=np.arange(0, 2 * n + 1, 2),
            logprob_N=-np.log1p(np.exp(-logits[side].reshape(-1))).astype(np.float32),
            rank_N=np.zeros(2 * n, dtype=np.int32),
            mean_N=np.zeros(2 * n, dtype=np.float32),
            variance_N=np.zeros(2 * n, dtype=np.float32),
            measured={GROUP: np.arange(n)},
        )
    return Subject(role, f"{role}-{seed}", made, seed)


def test_each_probe_has_its_own_figure_and_bound():
    n, random = 120, np.random.default_rng(5)
    noise = random.normal(size=(2, 2, n, 2))  # model, side, record, probe
    after = noise[0].copy()
    after[0, :, 1] += 3  # true answers, as the second probe sees them
    subjects = [both("after", after), both("reference", noise[1], seed=0)]
    config = ProbeConfig(blocks=(0,), max_excess=0.05)
    found = by_metric(probe(evidence_of(*subjects), config, Run()))
    ids = tuple(f"r-{row}" for row in range(n))
    rows = [row for row, i in enumerate(ids) if i not in attacked_ids(ids, 0.5, 0)]
    labels = np.repeat([1, 0], len(rows))
    for target, name in enumerate(("probe_auc", "mlp_probe_auc")):
        expected = roc_auc_score(labels, after[:, rows, target].reshape(-1))
        assert found[name].value == pytest.approx(expected)
    assert found["probe_auc_excess"].verdict != "fail"
    assert found["mlp_probe_auc_excess"].verdict == "fail"
    assert found["mlp_probe_auc_excess"].threshold == 0.05
    only = dataclasses.replace(config, probes=("mlp", "mlp"))
    planned = plan_readings([(audits.get("probe"), only)], Dataset("causal_lm", xor_people(4)[1]))
    assert {r.treatment for r in planned} == {"lens:0", "probe:0:0.5:mlp"}


def xor_people(count):
    """Words for people, and records whose true and false answers are words of their own."""
    words = [f"w{number}" for number in range(2 * count)]
    records = Records(
        tuple(f"who-{row}" for row in range(count)),
        {
            "question": ["who"] * count,
            "answer": words[:count],
            "perturbed_answer": [[word] for word in words[count:]],
        },
    )
    return words, records


def test_knowledge_that_no_direction_shows_is_found_by_the_network_alone():
    """A model whose block passes words on; two features of a word tell, together, if it is true."""
    from tiny_llama import llama_config, word_tokenizer
    from transformers import LlamaForCausalLM

    from expunge.engine.tasks.causal_lm import CausalLM, Template

    count = 160
    words, records = xor_people(count)
    tokenizer = word_tokenizer(["who", *words])
    task = CausalLM(tokenizer, Template(prompt="{question}", answer=" {answer}"))
    random = np.random.default_rng(2)

    def network(knows):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(llama_config(tokenizer)).eval()
        sign = random.choice([-1.0, 1.0], 2 * count)
        true = np.repeat([1.0, -1.0], count) if knows else random.choice([-1.0, 1.0], 2 * count)
        features = random.normal(size=(2 * count, 6)) * 0.3
        features[:, 0] += sign
        features[:, 1] += sign * true
        rows = tokenizer.convert_tokens_to_ids(words)
        with torch.no_grad():
            for block in model.model.layers:
                block.self_attn.o_proj.weight.zero_()
                block.mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight.zero_()
            model.model.embed_tokens.weight[rows, :6] = torch.tensor(features).float()
        return model

    sets = Sets.partition(records.ids, records.ids[:100])
    dataset, config = Dataset("causal_lm", records), ProbeConfig(blocks=(0,), max_excess=0.05)
    planned = plan_readings([(audits.get("probe"), config)], dataset)
    after, reference = (
        collect(network(knows), task, dataset, sets, planned, Run(), role=role)
        for knows, role in ((True, "after"), (False, "reference"))
    )
    evidence = Evidence(after, None, (reference,), sets.digest())
    found = by_metric(run_audit(audits.get("probe"), config, evidence, Run()))
    assert found["mlp_probe_auc"].n == 50
    assert found["mlp_probe_auc"].value > 0.9
    assert found["mlp_probe_auc_excess"].verdict == "fail"
    assert abs(found["probe_auc"].value - 0.5) < 0.15
    assert found["probe_auc_excess"].verdict == "inconclusive"
