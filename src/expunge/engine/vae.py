"""A small variational autoencoder: what the representations of a set of records have in common.

Shape legend: B records of a batch, N records of a set, D width of a representation, Z of a code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.loop import Stream, Term, fit
from expunge.engine.schedule import Schedule
from expunge.engine.task import Batch
from expunge.engine.tasks.regressor import Regressor
from expunge.engine.unlabelled import Unlabelled

Decoder = Literal["sigmoid", "linear"]

_KL_WEIGHT = 0.025
_EPS = 1e-8


class Vae(nn.Module):
    """Encoder D-128-32-Z and decoder Z-32-128-D with ReLU between.

    Args:
        width: D.
        code: Z.
        decoder: Last activation of the decoder; a sigmoid cannot rebuild what lies outside 0..1.

    Source: LAF (Shen et al., 2024), as its code builds it.
    """

    def __init__(self, width: int, code: int, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU()
        )
        self.mean, self.log_variance = nn.Linear(32, code), nn.Linear(32, code)
        self.decoder = nn.Sequential(
            nn.Linear(code, 32),
            nn.ReLU(),
            nn.Linear(32, 128),
            nn.ReLU(),
            nn.Linear(128, width),
            nn.Sigmoid() if decoder == "sigmoid" else nn.Identity(),
        )

    def forward(
        self, e_BD: Float[Tensor, "B D"], noise_BZ: Float[Tensor, "B Z"] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rebuilt representations, and mean and deviation of the codes.

        Args:
            e_BD: Representations.
            noise_BZ: Standard normal draws for the codes; without, codes are their means.
        """
        hidden = self.encoder(e_BD)
        mean, deviation = self.mean(hidden), torch.exp(0.5 * self.log_variance(hidden))
        code = mean if noise_BZ is None else mean + deviation * noise_BZ
        return self.decoder(code), mean, deviation

    def misfit_B(
        self, e_BD: Float[Tensor, "B D"], noise_BZ: Float[Tensor, "B Z"] | None = None
    ) -> Float[Tensor, " B"]:
        """Return by how much each representation is not rebuilt: the squared distance."""
        return squared_distance_B(self(e_BD, noise_BZ)[0], e_BD)


def squared_distance_B(
    rebuilt_BD: Float[Tensor, "B D"], e_BD: Float[Tensor, "B D"]
) -> Float[Tensor, " B"]:
    """Return the sum over dimensions of squared differences."""
    return (rebuilt_BD - e_BD).square().sum(1)


def vae_loss_B(
    rebuilt_BD: Float[Tensor, "B D"],
    e_BD: Float[Tensor, "B D"],
    mean_BZ: Float[Tensor, "B Z"],
    deviation_BZ: Float[Tensor, "B Z"],
) -> Float[Tensor, " B"]:
    """Return each record's loss: squared distance plus 0.025 KL of its code to a standard normal.

    Source: LAF (Shen et al., 2024), eq. 4, with the weight of its code.
    """
    variance = deviation_BZ.square()
    kl_B = -0.5 * (torch.log(variance + _EPS) + 1 - mean_BZ.square() - variance).sum(1)
    return squared_distance_B(rebuilt_BD, e_BD) + _KL_WEIGHT * kl_B


class Noise:
    """Standard normal draws for the codes of records, one for each record and epoch.

    A draw depends on seed, epoch and record only, so that a batch may be split at will.

    Args:
        ids: All records.
        size: Z.
        steps_per_epoch: After how many steps to draw anew.
        seed: The run's seed.
        purpose: Name of the random stream.
    """

    def __init__(
        self, ids: Sequence[str], size: int, steps_per_epoch: int, seed: int, purpose: str
    ) -> None:
        self._place = {record_id: row for row, record_id in enumerate(ids)}
        self._size, self._steps_per_epoch = size, steps_per_epoch
        self._seed, self._purpose = seed, purpose
        self._step, self._epoch = 0, -1
        self._drawn_NZ = torch.empty(0)

    def begin(self, steps: Sequence[Mapping[str, float]]) -> float:
        """Take note of the step, from the steps so far; the weight 1 of a term."""
        self._step = len(steps)
        return 1.0

    def of(self, ids: Sequence[str], like: Tensor) -> Float[Tensor, "B Z"]:
        """Return the draws of some records, with device and type of ``like``."""
        epoch = self._step // self._steps_per_epoch
        if epoch != self._epoch:
            draw = stream(self._seed, self._purpose, epoch)
            self._drawn_NZ = torch.from_numpy(
                draw.standard_normal((len(self._place), self._size), dtype="float32")
            )
            self._epoch = epoch
        return self._drawn_NZ[[self._place[i] for i in ids]].to(like)


def fit_vae(
    ids: Sequence[str],
    e_ND: Float[Tensor, "N D"],
    code: int,
    decoder: Decoder,
    schedule: Schedule,
    run: Run,
) -> Vae:
    """Fit an autoencoder to representations and return it frozen, in eval mode.

    Args:
        ids: Of the records.
        e_ND: Their representations.
        code: Z.
        decoder: Last activation of the decoder.
        schedule: Settings of the loop.
        run: Context; first weights and codes are drawn from its random streams.
    """
    torch.manual_seed(run.stream_seed("vae"))
    vae = Vae(e_ND.shape[1], code, decoder).to(device=e_ND.device, dtype=e_ND.dtype)
    column: Any = e_ND.cpu().numpy()
    records = Records(tuple(ids), {"e": column})
    steps = -(-len(records) // schedule.batch_size)
    noise = Noise(records.ids, code, steps, run.seed, "vae-code")

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        e_BD = batch.inputs["x"]
        rebuilt, mean, deviation = model(e_BD, noise.of(batch.ids, e_BD))
        return vae_loss_B(rebuilt, e_BD, mean, deviation)

    task = Unlabelled(Regressor(e_ND.shape[1], inputs="e"))
    terms = [Term("autoencoder", loss, noise.begin)]
    fit(vae, task, {"autoencoder": Stream(records)}, terms, schedule, run, label="autoencoder")
    return vae.requires_grad_(False).eval()
