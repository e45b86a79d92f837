"""Every method for classifiers and regressors at its defaults.

What differs from them is said beside it; nothing here was tuned on the results.
"""

from __future__ import annotations

from expunge.workloads.arm import Arm

_RESNET = (
    "resnet_random_1",
    "resnet_random_10",
    "resnet_random_50",
    "resnet_class",
    "resnet_worst_10",
    "resnet_poison",
    "resnet_confusion",
)
_PICTURES = (*_RESNET, "vit_random_10", "vit_class", "open_set_class")
_CLASSES = (*_PICTURES, "table_random_10")
_NUMBERS = ("price_quarter", "angle_band")

ARMS: tuple[Arm, ...] = (
    Arm("finetune", "finetune"),
    # The paper searches 1e-5 to 1e-3 over 5 epochs; the default rate belongs to language models.
    Arm(
        "grad_ascent",
        "grad_ascent",
        {
            "schedule": {
                "epochs": 5,
                "batch_size": 64,
                "optimizer": "sgd",
                "lr": 1e-3,
                "warmup_epochs": 0,
            }
        },
        only=_CLASSES,
    ),
    Arm("random_label", "random_label"),
    Arm("influence", "influence", only=_CLASSES),
    Arm("boundary_expand", "boundary_expand", only=_CLASSES),
    Arm("boundary_shrink", "boundary_shrink", only=_PICTURES),
    Arm("l1_sparse", "l1_sparse"),
    Arm("scrub", "scrub", only=_CLASSES),
    Arm("bad_teacher", "bad_teacher", only=_CLASSES),
    Arm("cfk", "cfk"),
    Arm("euk", "euk"),
    Arm("neggrad_plus", "neggrad_plus"),
    Arm("salun", "salun", only=_CLASSES),
    Arm("salun_soft", "salun_soft", only=_CLASSES),
    Arm("ssd", "ssd", only=_CLASSES),
    # A class has a tenth of the head to itself, so that the bound on each layer refuses.
    Arm(
        "ssd, forced", "ssd", {"force": True}, only=("resnet_class", "vit_class", "open_set_class")
    ),
    Arm("laf", "laf", only=_CLASSES),
    # Adapters need linear layers in the blocks, which a residual network lacks.
    Arm("gs_lora", "gs_lora", only=("vit_random_10", "vit_class", "table_random_10")),
    Arm("gs_lora_pp", "gs_lora_pp", only=("vit_random_10", "vit_class", "table_random_10")),
    Arm("concept", "concept", only=("resnet_class", "vit_class")),
    # Trained as far as the card's blind network: 4 epochs at 2e-3.
    Arm(
        "blindspot",
        "blindspot",
        {"blind": {"schedule": {"epochs": 4, "lr": 2e-3}}},
        only=_NUMBERS,
    ),
    Arm("gaussian_amnesiac", "gaussian_amnesiac", only=_NUMBERS),
)
