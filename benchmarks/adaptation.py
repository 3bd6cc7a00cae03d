"""What adapting a pretrained backbone costs: parameters that learn, memory and time of a training step.

    python benchmarks/adaptation.py                       # ViT-S, Swin-T and a small CNN, three tasks, batch 4
    python benchmarks/adaptation.py --networks small --size 128 --steps 3

Ways: full fine-tuning, the same with layer-wise decay of the learning rate, LoRA, MTLoRA, a frozen backbone, and a
frozen backbone whose features were stored. Weights are random: nothing here depends on them. Memory is what a step
holds at its peak: parameters, gradients, the moments of AdamW, and activations (counted operator by operator on the
CPU). Each way is timed in turn, so that a busy machine slows all alike; the seconds are medians. Prints a table and
JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from polyptych.backbones.timm import Timm
from polyptych.decoders.heads import Heads
from polyptych.encoders._base import CATALOG
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.optim import Optimizer
from polyptych.profiling.memory import peak, standing

TASKS = {"semseg": 13, "depth": 1, "normals": 3}
NETWORKS = {
    "vit": Timm.Config(model="vit_small_patch16_dinov3", vit_pyramid="taps"),
    "swin": Timm.Config(model="swin_tiny_patch4_window7_224"),
    "small": Timm.Config(model="efficientnet_lite0"),
}
TITLES = {"vit": "ViT-S (DINOv3)", "swin": "Swin-T", "small": "EfficientNet-Lite0"}
HEADS = Heads.Config(head="probe")
WAYS: dict[str, tuple[str, dict[str, Any], Optimizer]] = {
    "full": ("shared", {}, Optimizer()),
    "layer decay": ("shared", {}, Optimizer(layer_decay=0.75)),
    "LoRA": ("lora", {}, Optimizer()),
    "MTLoRA": ("mtlora", {}, Optimizer()),
    "frozen": ("shared", {"freeze": "all"}, Optimizer()),
    "frozen, stored features": ("shared", {"freeze": "all"}, Optimizer()),
}


class Subject:
    """A network, its optimizer and its input."""

    def __init__(self, model: str, way: str, size: int, batch: int, device: torch.device):
        encoder, freezing, optimizer = WAYS[way]
        torch.manual_seed(0)
        self.network = Network.build(replace(NETWORKS[model], **freezing), CATALOG.load(encoder).Config(), HEADS,
                                     TASKS).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = optimizer.build(self.network, torch.nn.Module())
        self.image = torch.rand(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
        self.maps: tuple[torch.Tensor, ...] = ()
        self.device = device
        if way.endswith("stored features"):
            with torch.no_grad():
                maps = self.network.encoder.frozen_maps(self.network.normalize(self.image))
            self.maps = tuple(x.half() for x in maps)

    def backward(self) -> None:
        final = self.network(self.image, self.maps).final
        torch.stack([x.square().mean() for x in final.values()]).sum().backward()

    def step(self) -> float:
        """Seconds."""
        start = time.perf_counter()
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def memory(self) -> dict[str, float]:
        """In MiB. Gradients exist before the peak of the activations is taken, so that none counts twice."""
        for p in self.network.parameters():
            if p.requires_grad:
                p.grad = torch.zeros_like(p)
        found = {"activations": peak(self.backward, self.device), **standing(self.network)}
        self.optimizer.zero_grad(set_to_none=True)
        return {name: size / 2**20 for name, size in found.items()}


def measure(model: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    device = torch.device(options.device)
    subjects = {}
    for way in WAYS:
        try:
            subjects[way] = Subject(model, way, options.size, options.batch, device)
        except InputError as error:  # LoRA on a network without attention
            print(f"{TITLES[model]}, {way}: {error}")
    seconds: dict[str, list[float]] = {way: [] for way in subjects}
    for turn in range(options.steps + 1):
        for way, subject in subjects.items():
            took = subject.step()
            if turn:  # the first step also allocates the optimizer's state
                seconds[way].append(took)
    found = {}
    for way, subject in subjects.items():
        memory = subject.memory()
        found[way] = {"learns": float(sum(p.numel() for p in subject.network.parameters() if p.requires_grad)),
                      "memory": sum(memory.values()), **memory, "seconds": statistics.median(seconds[way]),
                      "images_per_second": options.batch / statistics.median(seconds[way])}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    result = {}
    for model in options.networks:
        rows = result[model] = measure(model, options)
        full = rows["full"]
        print(f"\n{TITLES[model]}, {len(TASKS)} tasks, batch {options.batch} at {options.size}x{options.size}\n")
        print("| way | learns, M | memory, MiB | of full | step, s | images/s of full |")
        print("|---|---:|---:|---:|---:|---:|")
        for way, row in rows.items():
            print(f"| {way} | {row['learns'] / 1e6:.2f} | {row['memory']:.0f} | {row['memory'] / full['memory']:.0%} | "
                  f"{row['seconds']:.3f} | {row['images_per_second'] / full['images_per_second']:.1f} x |", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
