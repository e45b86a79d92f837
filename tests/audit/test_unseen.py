"""The view of what an attack did not look at."""

import pytest

from expunge.audit.readings import Reading
from expunge.audit.treatments import attacked_ids, groups_of
from expunge.audit.unseen import shown
from expunge.audit.views import Scene, see
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset


@pytest.fixture
def scene():
    rows = range(12)
    records = Records(
        tuple(f"r-{row}" for row in rows),
        {
            "question": [f"who {row}" for row in rows],
            "answer": [f"it {row}" for row in rows],
            "author": [f"author {row // 2}" for row in rows],
            "perturbed_answer": [[f"no {row}"] if row % 2 else None for row in rows],
        },
    )
    sets = Sets.partition(records.ids, records.ids[:10])
    return Scene(Dataset("causal_lm", records), sets, 5)


def test_what_is_seen_and_what_is_not_are_the_forget_set_in_whole_groups(scene):
    forget = scene.records("forget")
    seen, others = shown(scene, 0.4)
    assert seen.ids == attacked_ids(forget.ids, 0.4, 5, groups_of(forget))
    assert sorted(seen.ids + others.ids) == sorted(forget.ids)
    assert not set(seen["author"]) & set(others["author"])
    assert len(seen) == 4


def test_the_view_keeps_what_the_attack_does_not_see(scene, language_model):
    task = language_model[1]
    _, kept = see(task, scene, Reading("forget", "unseen:0.4"))
    assert kept.ids == shown(scene, 0.4)[1].ids
    assert see(task, scene, Reading("retain", "unseen:0.4"))[1].ids == ("r-10", "r-11")
    _, wrong = see(task, scene, Reading("forget", "unseen:0.4:perturbed:0"))
    assert list(wrong["answer"]) == [f"no {name[2:]}" for name in wrong.ids]
    assert set(wrong.ids) < set(kept.ids)


@pytest.mark.parametrize("share", ["", "0", "1", "half", "nan"])
def test_a_share_that_is_none_is_refused(scene, language_model, share):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        see(language_model[1], scene, Reading("forget", f"unseen:{share}"))
