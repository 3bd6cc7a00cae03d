"""MTLoRA's repository: low-rank updates of a frozen Swin, for all tasks and for each.

Source: Agiza, Neseem, Reda, CVPR 2024, arXiv 2403.20320, https://github.com/scale-lab/MTLoRA
"""

from __future__ import annotations

from polyptych.decoders.heads import Heads
from polyptych.encoders.mtlora import MTLoRA
from polyptych.errors import InputError
from polyptych.published._base import Form, Parts, Repository, Seen
from polyptych.published._swin import RECOMPUTED, SWIN, depths, square, swin
from polyptych.renaming import Rename, under

ADAPTED = (
    Rename("layers.{s}.blocks.{b}.attn.proj.lora_tasks_{m:A|B}.{task}",
           "stages.{s + 1}.stage.blocks.{b}.attn.proj.lora_tasks_{m}.{task}"),
    Rename("layers.{s}.blocks.{b}.mlp.{f:fc1|fc2}.lora_tasks_{m:A|B}.{task}",
           "stages.{s + 1}.stage.blocks.{b}.mlp.{f}.lora_tasks_{m}.{task}"),
    *SWIN,
)


def mtlora(seen: Seen) -> Parts:
    found = depths(seen)
    last = [f"backbone.layers.{s}.blocks.{depth - 1}.mlp.fc1" for s, depth in enumerate(found)]
    if not all(seen.has(f"backbone.layers.{s}.blocks.0.attn.qkv.lora_shared_A") for s in range(len(found))):
        raise InputError(seen.where, "blocks without updates for all tasks", "updates of queries, keys and values in "
                         "every block, as in all published configurations", "use a file with them")
    ranks = tuple(seen.shape(f"backbone.layers.{s}.blocks.0.attn.qkv.lora_shared_A")[0] for s in range(len(found)))
    of_tasks = {}
    if seen.has(f"{last[0]}.lora_tasks_A.{{task}}"):
        of_tasks = {ours: ",".join(str(seen.shape(f"{place}.lora_tasks_A.{name}")[0]) for place in last)
                    for name, ours in seen.tasks.items()}
    first = next(iter(seen.tasks))
    maps = seen.count(f"downsampler.{first}.downsample_{{k}}.weight", "k")
    encoder = MTLoRA.Config(
        ranks=ranks, task_rank=4 if of_tasks else 0, task_ranks=of_tasks,
        scale=seen.assume("shared_scale", 4.0, "the scale of the updates for all tasks"),
        task_scale=seen.assume("task_scale", 4.0, "the scale of the updates for a task"),
        merging="low_rank" if seen.has("backbone.layers.0.downsample.reduction.linear.weight") else "trained",
        reduce=tuple(seen.shape(f"downsampler.{first}.downsample_{k}.weight")[0] for k in range(maps)))
    size = square(seen)
    return Parts(swin(seen, size), encoder,
                 Heads.Config(width=seen.shape(f"decoders.decoders.{first}.last_layer.0.weight")[0]), size)


class MTLoRARepository(Repository):
    """Files do not contain the scales, which are 4 in all published configurations (``--assume shared_scale=4``,
    ``--assume task_scale=4``). All of these have the heads of HRNet."""

    page = "https://github.com/scale-lab/MTLoRA"
    license = "MIT"
    files = "Google Drive and a results folder of the authors; ckpt_epoch_N.pth with the network under model"
    order = ("semseg", "normals", "sal", "human_parts", "edge", "depth")
    prefix = ""
    recipes = ("pascal_mtlora", "nyud_mtlora")
    left_out = RECOMPUTED
    forms = (
        Form("MTLoRA", signs=("backbone.layers.0.blocks.0.attn.qkv.lora_shared_A",
                              "decoders.decoders.{task}.last_layer.3.weight"), parts=mtlora,
             outputs=("decoders.decoders.{task}.last_layer.3.weight",),
             rules=(*under("backbone.", "encoder.backbone.", ADAPTED),
                    Rename("downsampler.{task}.downsample_{k}.weight", "encoder.reduce.{task}.{k}.weight"),
                    Rename("decoders.decoders.{task}.last_layer.{n:0|1}.*", "decoder.heads.{task}.fuse.{n}.*"),
                    Rename("decoders.decoders.{task}.last_layer.3.*", "decoder.heads.{task}.predict.*"))),
    )
