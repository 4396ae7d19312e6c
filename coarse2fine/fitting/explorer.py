"""Training of an encoder for novelty: an autoencoder on unlabelled images, at several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from coarse2fine.fitting.explorer_kinds import Crops, add_kinds
from coarse2fine.fitting.optimise import train
from coarse2fine.model import Geometry, Model
from coarse2fine.models.autoencoder import Autoencoder
from coarse2fine.models.conv_stack import StackSpec
from coarse2fine.models.precision import Precision
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import as_channels
from coarse2fine.progress import Progress
from coarse2fine.refiners.novelty import LABELS, NoveltyRefiner
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image

_BATCH, _CELLS = 32, 12
# Scan and refinement use different resolutions, so the encoder is trained on both and those between.
_DOWNSAMPLES = (1, 2, 4, 8)
_THRESHOLD = 0.995


def fit_explorer(
    images: Sequence[Image],
    *,
    steps: int = 3000,
    kinds: bool = False,
    seed: int = 0,
    name: str = "explorer",
    device: str | None = None,
    precision: Precision = "auto",
    progress: bool = True,
) -> Model:
    """Train a convolutional autoencoder and make a model of its encoder that finds what is rare.

    Parameters
    ----------
    images : sequence of Image
        Unlabelled images of the domain the model is for; each is sampled equally often.
    kinds : bool
        Whether to learn kinds: clusters of cells, in a tree, each with a column that improves the reconstruction.
        Rarity is then measured within kinds; otherwise codes are clustered by k-means in each image. A quarter of the
        images is held out; if columns do not significantly improve the reconstruction there, they are left out with a
        warning. Fewer than ten images are too few for that.
    steps, seed, name, device, precision, progress
        As in `coarse2fine.fitting.fit`.

    Returns
    -------
    Model
    """
    runtime = Runtime.choose(device, precision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Autoencoder(3)
    spec = net.encoder.spec

    crops = drawn_from(images, spec)

    def make(rng: np.random.Generator) -> tuple[Tensor, ...]:
        x, _ = crops(rng)
        return x, x

    with Progress(progress) as bars:
        trained = train(net, make, _loss, runtime, steps=steps, seed=seed, tick=bars.task("autoencoder"))
    encoder = net.encoder.folded()
    model = Model(
        name=name,
        geometry=Geometry(cell=32, scan_downsample=4, refine_downsample=1, fine=4),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        base=encoder,
        refiner=NoveltyRefiner(encoder, LABELS),
        threshold=_THRESHOLD,
        provenance={
            "images": len(images),
            "steps": steps,
            "seed": seed,
            "loss": round(trained.loss, 4),
            "task": "autoencoder",
        },
    )
    return add_kinds(model, crops, seed) if kinds else model


def drawn_from(images: Sequence[Image], spec: StackSpec) -> Crops:
    """A sampler of batches of crops (n, 3, h, w), each image equally often, and the number of each crop's image.

    Parameters
    ----------
    images : sequence of Image
    spec : StackSpec
        Shape of the encoder.
    """

    def draw(rng: np.random.Generator) -> tuple[Tensor, NDArray[np.int64]]:
        chosen, rows = np.empty(_BATCH, np.int64), []
        for row in range(_BATCH):
            chosen[row] = rng.integers(len(images))
            rows.append(_crop(images[chosen[row]], spec, rng))
        return torch.from_numpy(np.stack(rows)), chosen

    return draw


def _crop(image: Image, spec: StackSpec, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random crop (3, h, w) at a random resolution, with random rotation, contrast and brightness."""
    side = spec.input_size(_CELLS)
    fitting = [d for d in _DOWNSAMPLES if min(image.height, image.width) // d >= side] or [1]
    downsample = int(rng.choice(fitting))
    high = [max(1, n // downsample - side + 1) for n in (image.height, image.width)]
    y, x = (int(rng.integers(h)) for h in high)
    pixels = as_channels(image.read_scaled(Box(y, x, y + side, x + side), downsample), 3)
    planes = (pixels.astype(np.float32) / 255 - 0.5) / 0.25
    planes = np.rot90(planes, int(rng.integers(4)))
    if rng.random() < 0.3:  # grey images are as common as colour ones
        planes = np.repeat(planes.mean(axis=-1, keepdims=True), 3, axis=-1)
    relit = planes * rng.uniform(0.6, 1.5) + rng.normal(0, 0.3)
    return np.ascontiguousarray(relit.transpose(2, 0, 1), np.float32)


def _loss(reconstructed: Tensor, x: Tensor) -> Tensor:
    """Error of the reconstruction and of its gradients: squared error alone gives blurred edges."""
    margin = (x.shape[-1] - reconstructed.shape[-1]) // 2
    true = x[..., margin:-margin, margin:-margin].float()
    reconstructed = reconstructed.float()
    loss = functional.mse_loss(reconstructed, true)
    for axis in (-1, -2):
        loss = loss + functional.l1_loss(reconstructed.diff(dim=axis), true.diff(dim=axis))
    return loss
