"""``Gate``: how much an input looks like the records of one request, in [0, 1].

A detector of one class, fitted on features of the request's records and nothing else. What it keeps
is derived from them: the bank holds one feature vector for each record and layer, which is personal
data where the records are. It holds no text.

Shape legend: B inputs, N records it was fitted on, L scored layers, D feature size, K principal
axes.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from expunge.core.config import config, parse, to_json
from expunge.core.errors import DataError, IntegrityError, NumericalError
from expunge.core.streams import stream_seed

MIN_RECORDS = 10
MIN_SPREAD = 1e-12
_REST_SHARE = 0.2
# Eigenvalues below this share of the largest are noise of single precision, not variance.
_NULL = 1e-6


@config
class GateSettings:
    """Settings of the detector that tells a request's inputs from others."""

    nu: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Bound on the share of used records outside the one-class model (ν)."""
    gamma: Annotated[float, Field(ge=0)] = 1000.0
    """Weight of the cosine beside the squared Mahalanobis distance (γ)."""
    zeta: Annotated[float, Field(gt=0)] = 10.0
    """Steepness of the gate (ζ)."""
    offset: float = 2.0
    """How far an input that fits in no way closes the gate: its weight is σ(-offset)."""
    variant: Literal["consistent", "official"] = "consistent"
    """``consistent``: distance and cosine point the same way, ``d - γ c``. ``official``: as in the
    authors' code, ``-γ c - d / 2``."""
    allow_tiny: bool = False
    """Take requests of fewer than 10 records, with a diagonal covariance and a wider gate."""


@dataclasses.dataclass(frozen=True, eq=False)
class LayerScore:
    """What the used records look like at one layer, in single precision.

    The precision matrix is ``axes^T diag(precisions) axes``, plus ``diag(rest)`` off the axes.

    Attributes:
        mean: Their mean feature, shape (D,).
        axes: Orthonormal principal axes, shape (K, D); one row of zeros when there are none.
        precisions: Inverse variance along each axis, shape (K,).
        rest: Inverse variance of each coordinate of what lies off the axes, shape (D,).
        bank: Their features at unit length, shape (N, D).
    """

    mean: Float[Tensor, " D"]
    axes: Float[Tensor, "K D"]
    precisions: Float[Tensor, " K"]
    rest: Float[Tensor, " D"]
    bank: Float[Tensor, "N D"]

    @classmethod
    def fit(cls, used_ND: Float[Tensor, "N D"], *, diagonal: bool = False) -> LayerScore:
        """Describe the features of the used records.

        The covariance is inverted on its range when there are more records than dimensions, and
        shrunk towards a multiple of the identity before that when there are not.

        Args:
            used_ND: Their features, in double precision.
            diagonal: Take coordinates as independent.

        Source: Ledoit & Wolf, 2004, for the amount of shrinkage.
        """
        mean_D = used_ND.mean(0)
        centred_ND = used_ND - mean_D
        if diagonal:
            axes_KD, precisions_K = torch.zeros_like(used_ND[:1]), used_ND.new_zeros(1)
            rest_D = _inverse(centred_ND.square().mean(0))
        else:
            axes_KD, precisions_K, rest_D = _precision(centred_ND)
        bank_ND = torch.nn.functional.normalize(used_ND, dim=1)
        return cls(*(t.float() for t in (mean_D, axes_KD, precisions_K, rest_D, bank_ND)))

    def distance(self, features_BD: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Return squared Mahalanobis distances from the mean."""
        centred_BD = features_BD - self.mean.double()
        axes_KD = self.axes.double()
        along_BK = centred_BD @ axes_KD.T
        off_BD = centred_BD - along_BK @ axes_KD
        return along_BK.square() @ self.precisions.double() + off_BD.square() @ self.rest.double()

    def closeness(self, features_BD: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Return the cosine between each input and the used record most like it."""
        unit_BD = torch.nn.functional.normalize(features_BD, dim=1)
        return (unit_BD @ self.bank.double().T).amax(1)


_LAYER = tuple(field.name for field in dataclasses.fields(LayerScore))


@dataclasses.dataclass(frozen=True, eq=False)
class Gate:
    """The detector of one request.

    Attributes:
        layers: What the used records look like, layer by layer.
        coef: Weights of the one-class model on the layers' scores, shape (L,), double precision.
        numbers: Its intercept, the mean score of used and of held-out records, and the spread of
            the latter, shape (4,), double precision.
        settings: How it was fitted.
    """

    layers: tuple[LayerScore, ...]
    coef: Float[Tensor, " L"]
    numbers: Float[Tensor, " 4"]
    settings: GateSettings

    @classmethod
    def fit(
        cls,
        used: Sequence[Float[Tensor, "N D"]],
        rest: Sequence[Float[Tensor, "M D"]],
        settings: GateSettings,
    ) -> Gate:
        """Fit a detector on the features of a request, split before by ``split``.

        Args:
            used: Features of the records that it may learn from, layer by layer.
            rest: Features of the held-out records, which say how scores spread.
            settings: The settings.

        Raises:
            DataError: There are too few records.
            NumericalError: A feature is NaN or infinite.
        """
        count = len(used[0]) + len(rest[0])
        require_enough(count, settings)
        tiny = count < MIN_RECORDS
        wide = [_finite(features) for features in used]
        layers = tuple(LayerScore.fit(features, diagonal=tiny) for features in wide)
        coef, intercept = _one_class(_vectors(layers, wide, settings), settings.nu)
        half_made = cls(layers, coef, torch.tensor([intercept, 0, 0, 1]).double(), settings)
        t_used, t_rest = half_made.score(used), half_made.score(rest)
        numbers = torch.stack(
            [half_made.numbers[0], t_used.mean(), t_rest.mean(), _spread(t_used, t_rest, tiny)]
        )
        return cls(layers, coef, numbers, settings)

    @property
    def centre(self) -> float:
        """Score at which the gate is widest open (x0)."""
        return float(self.numbers[1] + self.numbers[2]) / 2

    @property
    def size(self) -> int:
        """Length of the feature vectors (D)."""
        return len(self.layers[0].mean)

    def score(self, features: Sequence[Float[Tensor, "B D"]]) -> Float[Tensor, " B"]:
        """Return the one-class score t of each input, in double precision on the CPU.

        Args:
            features: Features of the inputs, layer by layer.

        Raises:
            DataError: They are not of the shape that the detector was fitted on.
            NumericalError: One is NaN or infinite.
        """
        shapes = [f.shape[1] for f in features], [len(layer.mean) for layer in self.layers]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"the features have sizes {shapes[0]} and the gate was fitted on {shapes[1]}; use "
                "it with the model that it was fitted with"
            )
        vectors = _vectors(self.layers, [_finite(f) for f in features], self.settings)
        return vectors @ self.coef + self.numbers[0]

    def weight(self, features: Sequence[Float[Tensor, "B D"]]) -> Float[Tensor, " B"]:
        """Return how far the gate opens for each input; arguments as for ``score``."""
        return self.opening(self.score(features))

    def opening(self, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return ``σ(ζ q - offset)``, with q how ordinary a score is for the request.

        ``q = 1 - |F(t) - F(2 x0 - t)|`` with F the mean of two normal distributions around the used
        and the held-out records. F is symmetric about x0, so that q is twice its smaller tail; as a
        sum of tails it keeps its digits where F is almost 1.

        Source: o3 (Gao et al., 2025), section 3.3.
        """
        m1, m2, spread = self.numbers[1:]
        half, spread = (m1 - m2).abs() / 2, spread.clamp(min=MIN_SPREAD)
        away = (t - (m1 + m2) / 2).abs()
        q = torch.special.ndtr((half - away) / spread) + torch.special.ndtr((-half - away) / spread)
        return torch.sigmoid(self.settings.zeta * q - self.settings.offset)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that, with ``settings_json``, make the same detector again."""
        parts = {
            f"{place}/{name}": getattr(layer, name)
            for place, layer in enumerate(self.layers)
            for name in _LAYER
        }
        return {"coef": self.coef, "numbers": self.numbers, **parts}

    def settings_json(self) -> dict[str, Any]:
        """Return its settings as plain data."""
        return to_json(self.settings)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Gate:
        """Make a detector of what ``tensors`` and ``settings_json`` returned.

        Raises:
            IntegrityError: A tensor is missing.
            ConfigError: A setting is wrong.
        """
        try:
            layers = tuple(
                LayerScore(*(tensors[f"{place}/{name}"] for name in _LAYER))
                for place in range(len(tensors["coef"]))
            )
            coef, numbers = tensors["coef"], tensors["numbers"]
        except KeyError as error:
            raise IntegrityError(
                f"the gate's tensor {error} is missing; save the model again"
            ) from error
        return cls(layers, coef, numbers, parse(GateSettings, settings, "gate"))


def require_enough(count: int, settings: GateSettings) -> None:
    """Check that a request is large enough for a gate.

    Args:
        count: Number of its records.
        settings: Whether tiny requests are allowed.

    Raises:
        DataError: It is not.
    """
    if count < MIN_RECORDS and not settings.allow_tiny:
        raise DataError(
            f"the request has {count} records and a gate needs at least {MIN_RECORDS}, for its "
            "covariance and its held-out fifth; join the request with the next one, or set "
            "gate.allow_tiny: true"
        )


def split(ids: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Divide the records of a request into those to fit on and those to hold out, 80 to 20.

    Which is which depends on seed and id only, not on the order. A single record is both.

    Args:
        ids: Ids of the records.
        seed: The run's seed.

    Returns:
        Row numbers of used and of held-out records, each in their order.
    """
    count = len(ids)
    if count < 2:
        return list(range(count)), list(range(count))
    held = min(max(2, round(_REST_SHARE * count)), count // 2)
    drawn = sorted(range(count), key=lambda row: (stream_seed(seed, "gate-split", ids[row]), row))
    return sorted(drawn[held:]), sorted(drawn[:held])


def _finite(features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    wide = features.detach().cpu().double()
    if not torch.isfinite(wide).all():
        raise NumericalError(
            "a hidden state of the model is NaN or infinite; check its weights and inputs"
        )
    return wide


def _vectors(
    layers: Sequence[LayerScore], features: Sequence[Tensor], settings: GateSettings
) -> Float[Tensor, "B L"]:
    """Return each layer's score of each input.

    They are not standardised, as in the official code.
    """
    sign = 1.0 if settings.variant == "consistent" else -0.5
    scores = [
        sign * layer.distance(f) - settings.gamma * layer.closeness(f)
        for layer, f in zip(layers, features, strict=True)
    ]
    return torch.stack(scores, dim=1)


def _one_class(vectors_NL: Float[Tensor, "N L"], nu: float) -> tuple[Float[Tensor, " L"], float]:
    """Fit a linear one-class support vector machine; return its weights and its intercept.

    A common factor of the vectors changes nothing but how soon the solver stops.
    """
    from sklearn.svm import OneClassSVM

    unit = float(vectors_NL.square().mean().sqrt()) or 1.0
    machine = OneClassSVM(kernel="linear", nu=nu)
    machine.random_state = (
        0  # it draws from numpy's global state otherwise, and uses it for nothing
    )
    machine.fit((vectors_NL / unit).numpy())
    coef = torch.from_numpy(np.array(machine.coef_[0], dtype=np.float64)) / unit
    return coef, float(machine.intercept_[0])


def _spread(t_used: Tensor, t_rest: Tensor, tiny: bool) -> Tensor:
    """Return the standard deviation of held-out scores; the official code drops the other one.

    One or two held-out records say little of how scores spread, so a tiny request takes the widest
    of what there is.
    """
    spread = t_rest.std(correction=0)
    if tiny:
        apart = (t_used.mean() - t_rest.mean()).abs() / 2
        spread = torch.stack([spread, t_used.std(correction=0), apart]).amax()
    if spread < MIN_SPREAD:
        warnings.warn(
            "the held-out records of the request all have the same score, so the gate opens for "
            "hardly anything else; give more, or more varied, records",
            stacklevel=2,
        )
    return spread


def _inverse(values: Tensor) -> Tensor:
    """Invert what is above the noise; leave 0 for the rest."""
    kept = values > _NULL * values.amax()
    return torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)


def _precision(centred_ND: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return axes, precisions along them and precision off them of the inverse covariance."""
    count, size = centred_ND.shape
    _, singular_K, axes_KD = torch.linalg.svd(centred_ND, full_matrices=False)
    values_K = singular_K.square() / count
    kept = values_K > _NULL * values_K.amax()
    if not kept.any():
        return (
            torch.zeros_like(centred_ND[:1]),
            values_K.new_zeros(1),
            torch.zeros_like(centred_ND[0]),
        )
    values_K, axes_KD = values_K[kept], axes_KD[kept]
    amount, off = 0.0, 0.0
    if count <= size:
        amount, floor = _shrinkage(centred_ND)
        off = 1 / floor if floor > 0 else 0.0
        values_K = (1 - amount) * values_K + floor
    return axes_KD, 1 / values_K, torch.full((size,), off, dtype=centred_ND.dtype)


def _shrinkage(centred_ND: Float[Tensor, "N D"]) -> tuple[float, float]:
    """Return the amount of shrinkage, and the variance that it gives to every direction."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    amount = float(ledoit_wolf_shrinkage(centred_ND.numpy(), assume_centered=True))
    return amount, amount * float(centred_ND.square().mean())
