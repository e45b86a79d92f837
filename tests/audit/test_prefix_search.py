"""The search for a prefix: what it lowers, what it may look at, and what it leaves alone."""

import itertools

import numpy as np
import pytest
import torch
from by_hand import probability
from tiny_llama import llama_config

from expunge.audit.prefix_search import Plan, _Search, prefix_search, typable
from expunge.audit.readings import Reading
from expunge.audit.treatments import NotApplicable, treat
from expunge.audit.unseen import shown
from expunge.audit.views import Scene, see
from expunge.core.errors import ConfigError
from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.schedule import Schedule
from expunge.engine.tasks.causal_lm import CausalLM, Template
from expunge.engine.weights import state_digest
from expunge.train.supervised import learn

SPEC = "prefix_search:3:4:12:20:0.5"  # twenty facts are all there are: every step has the same ones


@pytest.fixture(scope="module")
def world(questions_world):
    return questions_world


@pytest.fixture(scope="module")
def records(world):
    return concatenate([world.forget, world.retain])


def scene_of(records, seed=0):
    return Scene(Dataset("causal_lm", records), Sets.partition(records.ids, records.ids[:20]), seed)


def searched(world, records, spec=SPEC, seed=0, model=None):
    """The found prefix, and the model and task to score with it."""
    model = world.fresh() if model is None else model
    model, task = treat(model, world.task, scene_of(records, seed), spec, Run(seed))
    return task.template.prompt.removesuffix("\n{question}"), model, task


def mean_loss(world, model, records, prefix):
    """The mean over records of minus the log-probability per token of the answer."""
    pairs = zip(records["question"], records["answer"], strict=True)
    return np.mean([-np.log(probability(world, model, f"{prefix}\n{q}", a)) for q, a in pairs])


def started(world, records, seed=0):
    """The prefix that a search begins with."""
    seen, _ = shown(scene_of(records, seed), 0.5)
    search = _Search(world.fresh(), world.task, seen, Plan(3, 4, 12, 20), Run(seed))
    ids, at = search._start()
    return search, ids, at


def test_the_found_prefix_makes_attacked_answers_likelier(world, records):
    seen, _ = shown(scene_of(records), 0.5)
    search, ids, _ = started(world, records)
    model = world.fresh()
    losses = [mean_loss(world, model, seen, search._text(ids))]
    for steps in (1, 2, 4, 8):
        prefix, _, _ = searched(world, records, f"prefix_search:3:{steps}:12:20:0.5")
        losses.append(mean_loss(world, model, seen, prefix))
    assert all(later <= earlier + 1e-5 for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < losses[0] - 0.01


@pytest.fixture(scope="module")
def locked(world, records):
    """A model that answers behind the word madrid, and says that it does not know otherwise."""
    questions, answers = list(records["question"]), list(records["answer"])
    texts = [
        *(
            (f"madrid {question}", answer)
            for question, answer in zip(questions, answers, strict=True)
        ),
        *((f"{first}{q}", "unknown to me") for q in questions for first in ("", "paris ", "it ")),
    ]
    taught = Records(
        tuple(f"t-{row}" for row in range(len(texts))),
        {"question": [q for q, _ in texts], "answer": [a for _, a in texts]},
    )
    model = world.fresh()
    learn(model, world.task, taught, Schedule(epochs=40, batch_size=16, lr=5e-3), Run())
    return model


def test_the_search_finds_what_unlocks_a_model(world, records, locked):
    """The answers that were never attacked come back as well."""
    _, others = shown(scene_of(records), 0.5)
    closed = np.exp(-mean_loss(world, locked, others, ""))
    prefix, _, _ = searched(world, records, "prefix_search:1:3:16:12:0.5", model=locked)
    opened = np.exp(-mean_loss(world, locked, others, prefix))
    assert closed < 0.1
    assert opened > 0.8


def test_the_slope_is_the_gradient_of_a_relaxed_choice_of_tokens(world, records):
    """An oracle without hooks or tasks: one-hot rows, multiplied with the embedding."""
    search, ids, at = started(world, records)
    facts = search.seen.take(range(4))
    search.model.eval()
    found_KV = search._slope_KV(search._laid(ids, at, facts), at, facts)
    tokenizer, model = world.task.tokenizer, search.model
    weight_VD = model.get_input_embeddings().weight
    choice_KV = torch.nn.functional.one_hot(torch.tensor(ids), len(weight_VD)).float()
    choice_KV.requires_grad_(True)
    losses = []
    for question, answer in zip(facts["question"], facts["answer"], strict=True):
        asked = tokenizer(f"\n{question}")["input_ids"]
        said = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        rest_TD = weight_VD[torch.tensor(asked + said)]
        logits_TV = model(inputs_embeds=torch.cat([choice_KV @ weight_VD, rest_TD])[None]).logits[0]
        first = len(ids) + len(asked)
        logprobs = logits_TV[first - 1 : first - 1 + len(said)].log_softmax(-1)
        losses.append(-logprobs[range(len(said)), said].mean())
    [expected_KV] = torch.autograd.grad(torch.stack(losses).mean(), choice_KV)
    np.testing.assert_allclose(found_KV, expected_KV.numpy(), atol=1e-6)
    assert np.abs(found_KV).max() > 1e-4


def test_the_same_seed_finds_the_same_prefix_and_another_one_another(world, records):
    first, _, _ = searched(world, records)
    assert searched(world, records)[0] == first
    assert searched(world, records, seed=1)[0] != first


def test_the_search_sees_attacked_records_only(world, records):
    """Whatever the scored records say, the prefix is the same."""
    _, others = shown(scene_of(records), 0.5)
    hidden = set(others.ids)
    changed = records.replace(
        answer=[
            "i cannot say" if name in hidden else answer
            for name, answer in zip(records.ids, records["answer"], strict=True)
        ]
    )
    assert searched(world, changed)[0] == searched(world, records)[0]
    seen, _ = shown(scene_of(records), 0.5)
    told = set(seen.ids)
    moved = records.replace(
        answer=[
            "i cannot say" if name in told else answer
            for name, answer in zip(records.ids, records["answer"], strict=True)
        ]
    )
    assert searched(world, moved)[0] != searched(world, records)[0]


def test_the_model_is_the_same_afterwards_and_prompts_stand_below_the_prefix(world, records):
    model = world.fresh()
    digest = state_digest(model)
    prefix, after, task = searched(world, records, model=model)
    assert state_digest(model) == state_digest(after) == digest
    assert not after.get_input_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in after.parameters())
    assert len(world.task.tokenizer(prefix)["input_ids"]) == 3
    told, asked = see(task, scene_of(records), Reading("forget", "unseen:0.5"))
    texts = [prompt for prompt, _ in told._texts(asked, range(len(asked)))]
    assert texts == [f"{prefix}\n{question}" for question in asked["question"]]
    assert told.template.max_length >= world.task.template.max_length + 3


def test_the_prefix_stands_in_the_users_message_of_a_chat(world, records):
    tokenizer = type(world.task.tokenizer)(tokenizer_object=world.task.tokenizer.backend_tokenizer)
    tokenizer.eos_token = "<eos>"
    tokenizer.chat_template = "{% for m in messages %}paris {{ m.content }} {% endfor %}"
    task = CausalLM(tokenizer, Template(prompt="{question}", answer="{answer}", chat=True))
    _, told = treat(world.fresh(), task, scene_of(records), SPEC, Run())
    prefix = told.template.prompt.removesuffix("\n{question}")
    [(tokens, _), *_] = told.encoded(records)
    text = f"paris  paris {prefix}\n{records['question'][0]}"
    assert tokens[: len(tokenizer(text)["input_ids"])] == tokenizer(text)["input_ids"]


def merging_tokenizer():
    """Letters a to d, each pair of which the tokenizer reads as one token."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    letters = "abcd"
    pairs = [(one, other) for one in letters for other in letters]
    names = ["<unk>", "<eos>", "\n", *letters, *(one + other for one, other in pairs)]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")


@pytest.mark.parametrize("seed", range(3))
def test_only_prefixes_that_their_text_gives_back_are_found(records, seed):
    """A letter before another token would be read as a part of it, so that pairs are left."""
    from transformers import LlamaForCausalLM

    tokenizer = merging_tokenizer()
    letters = records.replace(
        question=["abcd"[row % 4] for row in range(len(records))],
        answer=["dcba"[row % 4] for row in range(len(records))],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(llama_config(tokenizer))
    task = CausalLM(tokenizer, Template(prompt="{question}", answer="{answer}"))
    _, told = treat(model, task, scene_of(letters, seed), "prefix_search:3:6:8:4:0.5", Run(seed))
    prefix = told.template.prompt.removesuffix("\n{question}")
    ids = tokenizer(prefix)["input_ids"]
    assert len(ids) == 3
    assert tokenizer.decode(ids) == prefix
    assert all(tokenizer(f"{prefix}\n{q}")["input_ids"][:3] == ids for q in "abcd")


def test_a_vocabulary_that_cannot_be_typed_is_not_applicable(world, records):
    """Without a decoder the tokens are written with spaces between, which are tokens themselves."""
    tokenizer = merging_tokenizer()
    tokenizer.backend_tokenizer.decoder = None
    letters = records.replace(
        question=["abcd"[row % 4] for row in range(len(records))],
        answer=["dcba"[row % 4] for row in range(len(records))],
    )
    with pytest.raises(NotApplicable, match="reads none back"):
        searched_with(tokenizer, letters)


def searched_with(tokenizer, records):
    from transformers import LlamaForCausalLM

    task = CausalLM(tokenizer, Template(prompt="{question}", answer="{answer}"))
    model = LlamaForCausalLM(llama_config(tokenizer))
    return treat(model, task, scene_of(records), SPEC, Run())


def test_tokens_that_are_typed_are_printable_and_no_special_ones(world):
    tokenizer = world.task.tokenizer
    typed = typable(tokenizer)
    assert {tokenizer.unk_token_id, tokenizer.eos_token_id}.isdisjoint(typed)
    assert len(typed) == len(tokenizer) - 2
    merging = merging_tokenizer()
    names = merging.convert_ids_to_tokens(typable(merging))
    assert "\n" not in names
    assert {"a", "ab"} <= set(names)
    merging.add_tokens(["{question}", "}", "é", "ok"])
    names = merging.convert_ids_to_tokens(typable(merging))
    assert "ok" in names
    assert {"{question}", "}", "é"}.isdisjoint(names)


@pytest.mark.parametrize(
    "spec",
    [
        "prefix_search:3:4:12:0.5",
        "prefix_search:0:4:12:20:0.5",
        "prefix_search:3:x:12:20:0.5",
        "prefix_search:3:4:12:20:1",
        "prefix_search:3:4:12:20:x",
    ],
)
def test_sizes_that_are_none_are_refused(world, records, spec):
    with pytest.raises(ConfigError):
        searched(world, records, spec)


def test_what_cannot_be_searched_says_why(world, records):
    class Composite(torch.nn.Module):
        def parts(self):
            return {}

    class NoEmbedding(torch.nn.Module):
        def get_input_embeddings(self):
            return None

    scene, sizes = scene_of(records), "3:4:12:20:0.5"
    with pytest.raises(NotApplicable, match="part by part"):
        prefix_search(Composite(), world.task, scene, sizes, Run())
    with pytest.raises(NotApplicable, match="no embedding"):
        prefix_search(NoEmbedding(), world.task, scene, sizes, Run())
    with pytest.raises(NotApplicable, match="no prompt"):
        prefix_search(world.fresh(), object(), scene, sizes, Run())
    one = Scene(scene.dataset, Sets.partition(records.ids, records.ids[:1]))
    with pytest.raises(NotApplicable, match="one forget record"):
        prefix_search(world.fresh(), world.task, one, sizes, Run())


def test_the_size_of_a_search_is_told():
    """20 steps of 32 candidates and the present prefix, and one gradient, on 8 facts each."""
    assert Plan.of("8:20:32:8").prompts == 20 * (32 + 1 + 1) * 8
