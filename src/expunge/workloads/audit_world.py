"""A world of made-up people for a language model that learns them by heart in seconds.

Every person has a home, a trade, a pet and a hobby, each of which can be asked for in two ways. The
model learns both ways for people who stay, so that it understands the second one, and only the
first for people who are to be forgotten.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.core.streams import stream
from expunge.data.dataset import Dataset
from expunge.engine.tasks.causal_lm import CausalLM, Template
from expunge.engine.weights import state_digest
from expunge.models.source import fresh_weights
from expunge.pipeline.recipe import Training
from expunge.train.supervised import learn

QUESTIONS = {
    "home": ("where does {} live", "the home of {} is"),
    "trade": ("what does {} do", "the trade of {} is"),
    "pet": ("which pet has {}", "the pet of {} is"),
    "hobby": ("what does {} like", "the hobby of {} is"),
}
_FIRST, _LAST, _WRONG = 12, 12, 3  # words of each place of an answer; wrong answers per record


@dataclasses.dataclass(frozen=True)
class World:
    """The data, the request, and how to run a model on them."""

    dataset: Dataset
    sets: Sets
    task: CausalLM

    @property
    def kept(self) -> Records:
        """Everything that was learned but the forget set."""
        gone = set(self.sets.forget)
        return self.dataset.train.select(i for i in self.dataset.train.ids if i not in gone)


def make_world(people: int) -> World:
    """Return a world in which ``people`` people are to be forgotten.

    As many are never learned, and twice as many stay, a quarter of whom no method sees.
    """
    names = [f"person{number}" for number in range(4 * people)]
    forget, unseen, kept = names[:people], names[people : 2 * people], names[2 * people :]
    shown, held = kept[people // 2 :], kept[: people // 2]
    leaving = _records(forget, "forget", 0)
    parts = [
        _records(shown, "retain", 0),
        _records(shown, "retain-again", 1),
        _records(held, "test", 0),
        _records(held, "test-again", 1),
    ]
    holdout, test = _records(unseen, "holdout", 0), parts[2]
    dataset = Dataset(
        "causal_lm", concatenate([leaving, *parts]), holdout=holdout, test=test, facts={}
    )
    retain = (*parts[0].ids, *parts[1].ids)
    sets = Sets(leaving.ids, retain, holdout.ids, test.ids)
    words = sorted({word for part in (dataset.train, holdout) for word in _words(part)})
    task = CausalLM(_tokenizer(words), Template(prompt="{question}", answer=" {answer}"))
    return World(dataset, sets, task)


def fresh_model(world: World, seed: int, width: int = 64) -> Any:
    """Return a GPT-2 of two blocks with random weights and an output head of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = world.task.tokenizer
    architecture = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=32,
        n_embd=width,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    with fresh_weights(seed):
        return GPT2LMHeadModel(architecture)


def trained(world: World, records: Records, training: Training, seed: int, run: Run) -> Any:
    """Return a model that learned these records.

    Args:
        world: The data.
        records: What to learn.
        training: How.
        seed: Decides weights at the start and the order of records.
        run: Context.
    """
    model = fresh_model(world, seed)
    own = run.child(f"training-{seed}-{state_digest(model)[:8]}-{len(records)}", seed=seed)
    own.checkpoint_every = 10**6  # it takes seconds
    learn(model, world.task, records, training, own)
    return model.eval()


def _records(names: list[str], prefix: str, way: int) -> Records:
    """Return the facts of people, asked in one of two ways."""
    rows = [(name, fact) for name in names for fact in QUESTIONS]
    answers = [_answer(name, fact) for name, fact in rows]
    return Records(
        tuple(f"{prefix}-{row:04d}" for row in range(len(rows))),
        {
            "question": [QUESTIONS[fact][way].format(name) for name, fact in rows],
            "paraphrased_question": [QUESTIONS[fact][1 - way].format(name) for name, fact in rows],
            "answer": answers,
            "perturbed_answer": [
                _others(name, fact, answer)
                for (name, fact), answer in zip(rows, answers, strict=True)
            ],
        },
    )


def _answer(name: str, fact: str, number: int = 0) -> str:
    first, last = stream(0, "answer", name, fact, number).integers((_FIRST, _LAST))
    return f"{fact}a{first} {fact}b{last}"


def _others(name: str, fact: str, answer: str) -> list[str]:
    """Return wrong answers, all different."""
    found: list[str] = []
    number = 1
    while len(found) < _WRONG:
        other = _answer(name, fact, number)
        number += 1
        if other != answer and other not in found:
            found.append(other)
    return found


def _words(records: Records) -> set[str]:
    wrong = {text for texts in records["perturbed_answer"] for text in texts}
    texts = {*records["question"], *records["paraphrased_question"], *records["answer"], *wrong}
    return {word for text in texts for word in text.split()}


def _tokenizer(words: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate(["<unk>", "<eos>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", model_max_length=32
    )
