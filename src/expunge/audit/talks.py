"""Views that ask the question at the end of a talk: after other facts, or after a wrong answer.

With a chat template every turn is a message of its own; without one the turns are lines of text.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from expunge.audit.contexts import fitting, free_column
from expunge.audit.prompts import (
    answer_columns,
    continued,
    filled,
    language,
    question_columns,
)
from expunge.audit.readings import PERTURBED, other_answers
from expunge.audit.unseen import share_of_forget, shown, without
from expunge.audit.views import Scene, views
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.engine.task import Task
from expunge.engine.tasks.causal_lm import CausalLM

AGAIN = "That is wrong. Try again."

_MARK = "\x1e"  # between earlier turns and the prompt; JSON never holds it raw

Turn = tuple[str, str]
"""What the user says and what the model answers, as the template writes both."""


@views.register("talk")
def talk(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Ask after earlier turns: ``talk:facts:3:0.5``, or ``talk:again``.

    ``facts``: three forget records of the half that an attack sees, with their true answers, drawn
    for each question; the records of that half are not asked. No records where there are fewer.
    ``again``: the question with a wrong answer, the record's first one or a refusal, then
    "That is wrong. Try again." and the question once more.

    What would no longer fit into what the model reads is left out.

    Raises:
        ConfigError: The parameters are none of these.
    """
    kind, _, rest = parameters.partition(":")
    if kind == "again":
        return _asked(task, records, scene, rest, _denied(task, records, scene.seed), AGAIN + "\n")
    count, _, rest = rest.partition(":")
    share, _, inner = rest.partition(":")
    if kind != "facts" or not count.isdecimal() or int(count) < 1:
        raise ConfigError(
            f"talk:{parameters} must be talk:again, or talk:facts with a whole number of turns of "
            "at least 1 and the share of the forget set that the attack sees"
        )
    seen, _ = shown(scene, share_of_forget(share))
    kept = without(records, seen) if len(seen) >= int(count) else records.take([])
    turns = [_facts(task, seen, int(count), scene.seed, name) for name in kept.ids]
    return _asked(task, kept, scene, inner, turns, "")


def _facts(task: Task, seen: Records, count: int, seed: int, name: str) -> list[Turn]:
    rows = stream(seed, "talk", name).choice(len(seen), count, replace=False)
    template = language(task).template
    return [
        (filled(template.prompt, seen, row), filled(template.answer, seen, row))
        for row in rows.tolist()
    ]


def _denied(task: Task, records: Records, seed: int) -> list[list[Turn]]:
    """Return the question of every record with a wrong answer to it; no turns: there is none."""
    plain = language(task)
    if not question_columns(task) or len(answer_columns(task)) != 1:
        return [[] for _ in records.ids]
    answers = list(other_answers(records, f"{PERTURBED}0"))
    for row, name in enumerate(records.ids):
        if answers[row] is None and plain.refusals:
            draw = stream(seed, "talk-refusal", name).integers(len(plain.refusals))
            answers[row] = plain.refusals[int(draw)]
    rows = [row for row, text in enumerate(answers) if text is not None]
    wrong = plain.answered(records.take(rows), [answers[row] for row in rows])
    turns: list[list[Turn]] = [[] for _ in answers]
    for place, row in enumerate(rows):
        texts = (plain.template.prompt, plain.template.answer)
        turns[row] = [(filled(texts[0], wrong, place), filled(texts[1], wrong, place))]
    return turns


def _asked(
    task: Task, records: Records, scene: Scene, inner: str, turns: list[list[Turn]], opening: str
) -> tuple[Task, Records]:
    """Return the records that have earlier turns, and the task that asks after them."""
    rows = [row for row, earlier in enumerate(turns) if earlier]
    plain, name = language(task), free_column(records, "talk")
    chat = plain.template.chat
    mark = _MARK if chat else "\n"
    after = dataclasses.replace(
        plain.template,
        prompt=f"{{{name}}}{mark}{opening}{plain.template.prompt}",
        max_length=sys.maxsize,
    )
    made = Talk if chat else CausalLM
    told = made(plain.tokenizer, after, plain.refusals, None, plain.continued)
    texts = [_written(turns[row], chat=chat) for row in rows]
    seen = records.take(rows).replace(**{name: texts})
    return continued(told, fitting(told, seen, scene, plain.context or sys.maxsize), scene, inner)


def _written(turns: list[Turn], *, chat: bool) -> str:
    if chat:
        return json.dumps(turns)
    return "\n".join(asked + answer for asked, answer in turns)


class Talk(CausalLM):
    """A language task whose prompts hold earlier turns, each a message of the chat template."""

    def _prompt_tokens(self, prompt: str) -> list[int]:
        earlier, _, last = prompt.partition(_MARK)
        messages = [{"role": "system", "content": self.template.system}]
        for asked, answer in json.loads(earlier):
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answer.strip()})
        messages.append({"role": "user", "content": last})
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
