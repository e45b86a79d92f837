"""The logit lens and the probes, beside hidden states taken by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from expunge.audit.collecting import collect
from expunge.audit.latent import Probe, hidden_RD, place_of, stack_of
from expunge.audit.readings import Reading
from expunge.audit.scores import score
from expunge.audit.treatments import NotApplicable, attacked_ids, groups_of, treat
from expunge.audit.views import Scene, see
from expunge.audit.wrong_answers import with_wrong_answers
from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.core.sets import Sets, sample_ids
from expunge.core.streams import stream_seed
from expunge.data.dataset import Dataset
from expunge.engine.composites.logit_difference import LogitDifference
from expunge.engine.weights import state_digest

FORGET = Reading("forget")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def deep(request, make_llama):
    """A random model of three blocks, and its task."""
    from tiny_llama import llama_config
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

    task, _ = make_llama
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if request.param == "llama":
            config = llama_config(task.tokenizer)
            config.num_hidden_layers, config.initializer_range = 3, 0.3
            return LlamaForCausalLM(config).eval(), task
        config = GPT2Config(
            vocab_size=len(task.tokenizer),
            n_positions=64,
            n_embd=16,
            n_layer=3,
            n_head=2,
            initializer_range=0.3,
            eos_token_id=task.tokenizer.eos_token_id,
        )
        return GPT2LMHeadModel(config).eval(), task


@pytest.fixture
def scene(questions_world):
    records = concatenate([questions_world.forget, questions_world.retain])
    sets = Sets(questions_world.forget.ids, questions_world.retain.ids)
    return Scene(Dataset("causal_lm", records), sets)


def read(model, task, scene, readings, **settings):
    return collect(
        model, task, scene.dataset, scene.sets, readings, Run(), role="after", **settings
    )


def hidden_states(model, task, records):
    """Return every block's input and the last one's output, and the tokens, record by record."""
    for (tokens, start), record_id in zip(task.encoded(records), records.ids, strict=True):
        with torch.no_grad():
            output = model(input_ids=torch.tensor([tokens]), output_hidden_states=True)
        yield record_id, tokens, start, [state[0] for state in output.hidden_states]


@pytest.mark.parametrize("block", [0, 1])
def test_the_lens_reads_a_block_through_the_final_norm_and_the_head(deep, scene, block):
    model, task = deep
    reading = Reading("forget", treatment=f"lens:{block}")
    scores = read(model, task, scene, [reading]).scores[reading]
    norm = model.model.norm if hasattr(model, "model") else model.transformer.ln_f
    records = scene.records("forget")
    for row, (_, tokens, start, states) in enumerate(hidden_states(model, task, records)):
        with torch.no_grad():
            logits = model.lm_head(norm(states[block + 1]))
        expected = logits.log_softmax(1)[range(start - 1, len(tokens) - 1), tokens[start:]]
        found = scores.logprob_N[scores.offsets[row] : scores.offsets[row + 1]]
        assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_lens_on_the_last_block_is_the_model_itself(deep, scene):
    model, task = deep
    last = [Reading("forget", treatment=f"lens:{place}") for place in ("2", "-1", "1/1", "6/6")]
    found = read(model, task, scene, [FORGET, *last]).scores
    first = Reading("forget", treatment="lens:0")
    for reading in last:
        assert found[reading].logprob_N == pytest.approx(found[FORGET].logprob_N, abs=1e-6)
    changed = read(model, task, scene, [first]).scores[first]
    assert np.abs(changed.logprob_N - found[FORGET].logprob_N).max() > 0.1


def test_looking_leaves_the_model_as_it_was(deep, scene):
    model, task = deep
    digest, layers = state_digest(model), model.config.num_hidden_layers
    readings = [Reading("forget", treatment=name) for name in ("lens:0", "probe:0:0.5:linear+mlp")]
    read(model, task, scene, readings)
    assert state_digest(model) == digest
    assert model.config.num_hidden_layers == layers == len(stack_of(model))
    assert not model.training


def test_hidden_states_are_those_of_the_last_answer_token(deep, scene):
    model, task = deep
    records = scene.records("retain")
    found = hidden_RD(model, task, records, stack_of(model)[0], Run())
    assert found.shape == (len(records), 16)
    for row, (_, tokens, _, states) in enumerate(hidden_states(model, task, records)):
        assert tokens[-1] == task.tokenizer.eos_token_id
        assert found[row] == pytest.approx(states[1][len(tokens) - 2].numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("place", "number"),
    [("0", 0), ("11", 11), ("-1", 11), ("-12", 0), ("1/6", 1), ("3/6", 5), ("6/6", 11), ("1/5", 2)],
)
def test_blocks_go_by_number_or_depth(place, number):
    assert place_of([str(block) for block in range(12)], place) == number


@pytest.mark.parametrize("place", ["12", "-13", "1/24"])
def test_a_block_that_is_not_there_does_not_apply(place):
    with pytest.raises(NotApplicable, match="12"):
        place_of([str(block) for block in range(12)], place)


def test_depths_name_every_block_once():
    for count in range(1, 14):
        names, found = [str(block) for block in range(count)], []
        for part in range(1, 7):
            try:
                found.append(place_of(names, f"{part}/6"))
            except NotApplicable:
                continue
        assert found == sorted(set(found))
        assert found[-1] == count - 1
        assert len(found) == min(count, 6)


def test_what_has_no_single_stack_does_not_apply(questions_world, scene):
    composite = LogitDifference(questions_world.fresh(), questions_world.fresh(), alpha=0.5)
    readings = [Reading("forget", treatment=name) for name in ("lens:0", "probe:0:0.5:linear+mlp")]
    found = read(composite, questions_world.task, scene, readings)
    assert not found.scores
    assert all("composite" in found.absent[reading] for reading in readings)
    with pytest.raises(NotApplicable, match="Sequential"):
        stack_of(nn.Sequential(nn.Linear(2, 2)))


# --- the probe ---


def planted(kind, random, count=400):
    """Hidden states of 8 features, a constant one among them, that hold true and false answers.

    ``direction``: feature 3 is larger for true answers. ``xor``: features 2 and 3 have one sign
    for true answers and two for false ones, so that neither tells anything alone.
    """
    labels = np.repeat([1, 0], count // 2)
    hidden = random.normal(size=(count, 8)) * np.array([1, 100, 0.3, 0.3, 0, 1, 1, 1]) + 5
    if kind == "direction":
        hidden[:, 3] += 4 * labels
    else:
        sign = random.choice([-1, 1], count)
        hidden[:, 2] += 2 * sign
        hidden[:, 3] += 2 * sign * (2 * labels - 1)
    return hidden.astype(np.float32), labels


def told_apart(probe, hidden, labels):
    return roc_auc_score(labels, probe.logit_B(torch.tensor(hidden)).numpy())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_probe_finds_a_planted_direction(kind):
    random = np.random.default_rng(0)
    probe = Probe.fitted(kind, *planted("direction", random), seed=0)
    assert told_apart(probe, *planted("direction", random)) > 0.95
    assert probe.scale_D[4] == 1  # a constant feature divides by nothing


def test_only_the_network_finds_two_features_that_tell_together():
    random = np.random.default_rng(0)
    learned, fresh = planted("xor", random), planted("xor", random)
    linear, mlp = (Probe.fitted(kind, *learned, seed=0) for kind in ("linear", "mlp"))
    assert abs(told_apart(linear, *fresh) - 0.5) < 0.1
    assert told_apart(mlp, *fresh) > 0.95


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_largest_distance_in_training_is_one_and_a_seed_decides_all(kind):
    hidden, labels = planted("xor", np.random.default_rng(1), 60)
    probe, again, other = (Probe.fitted(kind, hidden, labels, seed) for seed in (0, 0, 1))
    logit = probe.logit_B(torch.tensor(hidden))
    assert logit.abs().max().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(logit, again.logit_B(torch.tensor(hidden)))
    assert torch.equal(logit, other.logit_B(torch.tensor(hidden))) == (kind == "linear")


def test_a_network_that_needs_more_iterations_says_nothing(recwarn):
    random = np.random.default_rng(0)
    Probe.fitted("mlp", random.normal(size=(200, 48)), np.repeat([1, 0], 100), seed=0)
    assert not recwarn


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scores_of_the_probes_are_those_of_a_library_on_hidden_states(deep, scene):
    model, task = deep
    true = Reading("forget", treatment="probe:1:0.5:linear+mlp")
    wrong = dataclasses.replace(true, view="wrong:0.5")
    found = read(model, task, scene, [true, wrong]).scores
    block, forget, retain = stack_of(model)[1], scene.records("forget"), scene.records("retain")

    # The same regression, fitted here on what it should have learned from.
    seen = attacked_ids(forget.ids, 0.5, 0)
    others = sample_ids(retain.ids, len(seen), 0, "probe-retain")
    parts = [forget.select(seen), retain.select(others)]
    asked = [with_wrong_answers(part, np.zeros(len(part), dtype=bool), 0) for part in parts]
    told = [part.select(one.ids) for part, one in zip(parts, asked, strict=True)]
    learned = [*told, *asked]
    features = np.concatenate(
        [hidden_RD(model, task, part, block, Run()) for part in learned if len(part)]
    )
    labels = np.repeat([1, 0], sum(map(len, told)))
    scaler = StandardScaler().fit(features.astype(np.float64))
    scaled = scaler.transform(features.astype(np.float64))
    regression = LogisticRegression(max_iter=5000).fit(scaled, labels)
    start = stream_seed(0, "probe") % 2**32
    network = MLPClassifier((64,), solver="lbfgs", alpha=1.0, max_iter=500, random_state=start).fit(
        scaled, labels
    )

    def odds(values):
        """Return the logit of the library's own probability."""
        return logit(network.predict_proba(values)[:, 1])

    for reading, records in ((true, forget), (wrong, see(task, scene, wrong)[1])):
        assert found[reading].ids == records.ids
        hidden = scaler.transform(hidden_RD(model, task, records, block, Run()))
        for target, distance in enumerate((regression.decision_function, odds)):
            expected = distance(hidden) / np.abs(distance(scaled)).max()
            logprob = found[reading].logprob_N[target::2]
            assert logprob == pytest.approx(-np.log1p(np.exp(-expected)), abs=1e-4)


def test_batch_size_and_a_second_run_change_nothing(deep, scene):
    model, task = deep
    readings = [
        Reading("forget", view, treatment="probe:0:0.5:linear+mlp")
        for view in ("answer", "wrong:0.5")
    ]
    one, again = (read(model, task, scene, readings, batch_size=2).scores for _ in range(2))
    large = read(model, task, scene, readings, batch_size=32).scores
    for reading in readings:
        assert np.array_equal(one[reading].logprob_N, again[reading].logprob_N)
        assert one[reading].logprob_N == pytest.approx(large[reading].logprob_N, abs=1e-5)


def test_a_single_forget_record_teaches_no_probe(questions_world):
    records = questions_world.forget.take([0])
    scene = Scene(Dataset("causal_lm", records), Sets(records.ids))
    reading = Reading("forget", treatment="probe:0:0.5:linear+mlp")
    found = read(questions_world.fresh(), questions_world.task, scene, [reading])
    assert "two forget records" in found.absent[reading]


def test_the_probe_task_runs_like_any_other(questions_world, scene):
    _, probes = treat(
        questions_world.model, questions_world.task, scene, "probe:0:0.5:linear+mlp", Run()
    )
    records = scene.records("forget")
    found = score(questions_world.model, probes, records, Run())
    assert found.n_R.tolist() == [2] * len(records)
    assert probes.num_targets(records) == [2] * len(records)
    assert probes.lengths(records) == questions_world.task.lengths(records)
    assert probes.fingerprint() != questions_world.task.fingerprint()
    neutral = probes.neutral(records, 0, 0)
    assert list(neutral["answer"]) == list(questions_world.task.neutral(records, 0, 0)["answer"])


# --- wrong answers ---


def test_a_wrong_answer_is_ones_own_or_that_of_a_record_on_the_same_side():
    count = 40
    records = Records(
        tuple(f"r-{row}" for row in range(count)),
        {
            "question": [f"q {row}" for row in range(count)],
            "answer": [f"answer {row // 2}" for row in range(count)],
            "perturbed_answer": [["own", "other"] if row == 5 else None for row in range(count)],
        },
    )
    scene = Scene(Dataset("causal_lm", records), Sets(records.ids))
    found = see(None, scene, Reading("forget", "wrong:0.25"))[1]
    assert found.ids == records.ids
    assert found["answer"][5] == "own"
    seen = set(attacked_ids(records.ids, 0.25, 0))
    sides = {side: set() for side in (True, False)}
    for record_id, answer in zip(records.ids, records["answer"], strict=True):
        sides[record_id in seen].add(answer)
    for row, answer in enumerate(found["answer"]):
        assert answer != records["answer"][row]
        assert row == 5 or answer in sides[records.ids[row] in seen]
    assert len(set(found["answer"])) > 10


def test_no_wrong_answer_is_borrowed_across_authors_that_the_attack_divides():
    count = 40
    answers, authors = ([f"{word} {row // 4}" for row in range(count)] for word in ("answer", "a"))
    answers = [f"{text}.{row}" for row, text in enumerate(answers)]
    columns = {"question": ["q"] * count, "answer": answers, "author": authors}
    records = Records(tuple(f"r-{row}" for row in range(count)), columns)
    seen = set(attacked_ids(records.ids, 0.5, 0, groups_of(records)))
    owner = dict(zip(answers, records.ids, strict=True))
    scene = Scene(Dataset("causal_lm", records), Sets(records.ids))
    found = see(None, scene, Reading("forget", "wrong:0.5"))[1]
    for record_id, answer in zip(found.ids, found["answer"], strict=True):
        assert (record_id in seen) == (owner[answer] in seen)


def test_the_probe_learns_of_no_author_that_is_scored(deep, scene):
    model, task = deep
    train, whole = scene.dataset.train, scene.dataset.train.ids
    sets = Sets(forget := whole[-16:], whole[:-16])
    place = {record_id: row for row, record_id in enumerate(forget)}
    train = train.replace(author=[f"a{place.get(i, -1) // 2}" for i in train.ids])
    scored = set(forget) - set(attacked_ids(forget, 0.5, 0, groups_of(train.select(forget))))
    assert {place[i] // 2 for i in scored}.isdisjoint({place[i] // 2 for i in set(forget) - scored})
    changed = [
        "unknown" if i in scored else a for i, a in zip(train.ids, train["answer"], strict=True)
    ]
    first, second = (
        treat(
            model, task, Scene(Dataset("causal_lm", part), sets, 0), "probe:1:0.5:linear+mlp", Run()
        )[1]
        for part in (train, train.replace(answer=changed))
    )
    for one, other in zip(first.probes, second.probes, strict=True):
        for own, same in zip(one.layers, other.layers, strict=True):
            assert all(map(torch.equal, own, same))


def test_a_record_that_no_answer_differs_from_is_left_out():
    records = Records(("a", "b", "c"), {"question": ["q"] * 3, "answer": ["x", "x", "x"]})
    scene = Scene(Dataset("causal_lm", records), Sets(records.ids))
    assert len(see(None, scene, Reading("forget", "wrong:0.5"))[1]) == 0
