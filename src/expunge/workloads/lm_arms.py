"""Every method at its paper's settings, scaled to the two fixtures.

Steps, batch and learning rate are the fixture's for every method, unless the method trains
something else than the model (an assistant, an adapter). Nothing here was tuned on the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.workloads.arm import Arm

On = Mapping[str, Mapping[str, Any]]


# beta scales a sum over an answer's tokens: about 9 on country facts, about 12 on people, against
# some 60 in the papers (card npo, pitfall 1). The paper's 0.1 is shown beside it.
_SMALL = ("country_facts",)
_SHORT: On = {"country_facts": {"beta": 1.0}, "people": {"beta": 0.5}}
_ASSISTANT: On = {
    "country_facts": {
        "layers": 1,
        "schedule": {"epochs": 150, "batch_size": 36, "lr": 2e-3},
    },
    "people": {"schedule": {"epochs": 20, "lr": 1e-3}},
}
_SAMPLED: On = {
    "country_facts": {"instruction": "{prompt}", "max_new_tokens": 20},
    "people": {"max_new_tokens": 24},
}

ARMS: tuple[Arm, ...] = (
    Arm("grad_ascent", "grad_ascent"),
    Arm("grad_diff, nll", "grad_diff", {"retain": "nll"}),
    Arm("grad_diff, kl", "grad_diff", {"retain": "kl"}),
    Arm("idk", "idk"),
    Arm("dpo", "dpo"),
    Arm("npo, no retain term", "npo", {"retain": "none"}, _SHORT),
    Arm("npo, nll", "npo", {"retain": "nll"}, _SHORT),
    Arm("npo, kl", "npo", {"retain": "kl"}, _SHORT),
    Arm("npo, nll, beta 0.1", "npo", {"retain": "nll"}, only=_SMALL),
    Arm("simnpo", "simnpo"),
    Arm(
        "rmu",
        "rmu",
        on={"country_facts": {"layer": 1, "coefficient": 6.0}, "people": {"layer": 26}},
    ),
    Arm("altpo", "altpo", on=_SAMPLED),
    Arm("undial", "undial"),
    Arm("ceu", "ceu"),
    Arm("ceu, nll", "ceu", {"retain": "nll"}, only=_SMALL),
    Arm("wga", "wga"),
    Arm("satimp", "satimp"),
    Arm(
        "pdu",
        "pdu",
        on={
            "country_facts": {"epsilon": 0.05, "dual_warmup_epochs": 25},
            "people": {"dual_warmup_epochs": 2},
        },
    ),
    Arm("task_vector", "task_vector"),
    Arm("whp", "whp", {"alpha": 2.0}),
    Arm("flat, kl", "flat", {"divergence": "kl"}, only=_SMALL),
    Arm("flat, js", "flat", {"divergence": "js"}, only=_SMALL),
    Arm("flat, pearson", "flat", {"divergence": "pearson"}, only=_SMALL),
    Arm("flat, tv", "flat", {"divergence": "tv"}),
    Arm(
        "wagle",
        "wagle",
        {"scope": {"mask": {"by": "attribution", "fraction": 0.95}}},
        _SHORT,
    ),
    Arm("uld, alpha 0.8", "uld", {"alpha": 0.8}, _ASSISTANT, own_scope=True),
    Arm("uld, alpha 1", "uld", {"alpha": 1.0}, _ASSISTANT, own_scope=True, only=_SMALL),
    Arm(
        "o3",
        "o3",
        on={
            "country_facts": {"schedule": {"lr": 2e-3, "weight_decay": 0.1}},
            "people": {"schedule": {"epochs": 10, "lr": 1e-3, "weight_decay": 0.1}},
        },
        own_scope=True,
    ),
)
