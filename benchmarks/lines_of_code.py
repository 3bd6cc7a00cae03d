"""The same program twice: with Polyptych, and with segmentation_models.pytorch 0.6.0 and LibMTL 1.1.5.

``python benchmarks/lines_of_code.py`` counts the lines of both (docs/own-program.md has the table), and runs both on
random data if the other packages are there (``pip install segmentation-models-pytorch LibMTL``).

Both: three tasks on one ResNet-18 with FPN heads, PCGrad on the shared encoder, labels missing where they say so (255,
0 m, no vector), mIoU, RMSE and mean angle over the whole set, and a picture of depth.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor, nn

import polyptych

Batches = Iterable[tuple[Tensor, dict[str, Tensor]]]


def ours(train: Batches, val: Batches) -> dict[str, float]:
    tasks = {"semseg": polyptych.task("semseg", classes=13, ignored=255), "depth": polyptych.task("depth", ignored=0),
             "normals": polyptych.task("normals", ignored=0)}
    network = polyptych.network("resnet18", tasks, decoder_head="fpn")
    balancer = polyptych.balancer("pcgrad", tasks)
    optimizer = torch.optim.AdamW(network.parameter_groups(learning_rate=1e-3))
    for image, target in train:
        balancer.backward(polyptych.losses(tasks, network(image), target), network)
        optimizer.step()
        optimizer.zero_grad()
    metrics = {name: task.metric() for name, task in tasks.items()}
    network.eval()
    with torch.no_grad():
        for image, target in val:
            output = network(image)
            for name, metric in metrics.items():
                metric.update(output[name], target[name])
    Image.fromarray(tasks["depth"].colors(tasks["depth"].decode(output["depth"])[0])).save("depth.png")
    return {name: metric.compute()[metric.headline] for name, metric in metrics.items()}


def theirs(train: Batches, val: Batches) -> dict[str, float]:
    import segmentation_models_pytorch as smp
    from LibMTL.weighting import PCGrad

    class Network(PCGrad):
        def __init__(self, channels: dict[str, int]):
            super().__init__()
            parts = {name: smp.FPN("resnet18", encoder_weights=None, classes=number)
                     for name, number in channels.items()}
            self.encoder = next(iter(parts.values())).encoder
            self.decoders = nn.ModuleDict({name: nn.ModuleList([part.decoder, part.segmentation_head])
                                           for name, part in parts.items()})
            self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
            self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
            self.task_num, self.rep_grad, self.device = len(channels), False, torch.device("cpu")

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            features = self.encoder((image / 255 - self.mean) / self.std)
            return {name: head(decoder(features)) for name, (decoder, head) in self.decoders.items()}

        def get_share_params(self) -> Iterable[nn.Parameter]:
            return self.encoder.parameters()

        def zero_grad_share_params(self) -> None:
            self.encoder.zero_grad(set_to_none=False)

    def losses_of(output: dict[str, Tensor], target: dict[str, Tensor]) -> list[Tensor]:
        depth, normals = target["depth"][:, None], target["normals"]
        has_depth, has_normals = depth > 0, normals.abs().sum(1) > 0
        missing = (target["semseg"] != 255).sum().clamp(min=1)
        semseg = F.cross_entropy(output["semseg"], target["semseg"], ignore_index=255, reduction="sum") / missing
        error = (output["depth"] - depth).abs()[has_depth].sum() / has_depth.sum().clamp(min=1)
        cosine = F.cosine_similarity(output["normals"], normals)
        return [semseg, error, (1 - cosine)[has_normals].sum() / has_normals.sum().clamp(min=1)]

    network = Network({"semseg": 13, "depth": 1, "normals": 3})
    decayed = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
                                  lr=1e-3)
    for image, target in train:
        optimizer.zero_grad(set_to_none=False)
        network.backward(losses_of(network(image), target))
        optimizer.step()
    confusion, squares, depths, angles, vectors = torch.zeros(13, 13), 0.0, 0, 0.0, 0
    network.eval()
    with torch.no_grad():
        for image, target in val:
            output = network(image)
            ids, found = target["semseg"], output["semseg"].argmax(1)
            labeled = ids != 255
            confusion += torch.bincount(13 * ids[labeled] + found[labeled], minlength=169).view(13, 13)
            has_depth = target["depth"] > 0
            squares += float((output["depth"][:, 0] - target["depth"])[has_depth].square().sum())
            depths += int(has_depth.sum())
            has_normals = target["normals"].abs().sum(1) > 0
            cosine = F.cosine_similarity(output["normals"], target["normals"])[has_normals].clamp(-1, 1)
            angles += float(cosine.acos().rad2deg().sum())
            vectors += int(has_normals.sum())
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    depth = output["depth"][0, 0].numpy()
    shown = (depth - depth.min()) / max(np.ptp(depth), 1e-6)
    Image.fromarray((colormaps["viridis"](shown)[..., :3] * 255).astype(np.uint8)).save("depth.png")
    return {"semseg": 100 * float((confusion.diagonal() / union)[union > 0].mean()), "depth": (squares / depths) ** 0.5,
            "normals": angles / vectors}


def lines(program: Callable) -> int:
    """Of its body, without empty ones and imports."""
    body = [line.strip() for line in inspect.getsource(program).splitlines()[1:]]
    return sum(bool(line) and not line.startswith(("import ", "from ")) for line in body)


def random_batches(number: int) -> Batches:
    torch.manual_seed(0)
    for _ in range(number):
        yield torch.randint(256, (4, 3, 64, 96), dtype=torch.uint8), {
            "semseg": torch.where(torch.rand(4, 64, 96) < 0.1, 255, torch.randint(13, (4, 64, 96))),
            "depth": torch.rand(4, 64, 96) * 5, "normals": F.normalize(torch.randn(4, 3, 64, 96), dim=1)}


def main() -> None:
    packages = "segmentation_models_pytorch", "LibMTL"
    # LibMTL 1.1.5 imports a module that torchvision no longer has; nothing here uses what it wants of it.
    gone: Any = types.ModuleType("torchvision.models.utils")
    gone.load_state_dict_from_url = None
    sys.modules[gone.__name__] = gone
    for program in (ours, theirs):
        print(f"{program.__name__}: {lines(program)} lines")
        if program is ours or all(importlib.util.find_spec(name) for name in packages):
            print("  ", program(random_batches(3), random_batches(2)))
            Path("depth.png").unlink()


if __name__ == "__main__":
    main()
