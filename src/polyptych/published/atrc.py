"""ATRC's repository: contexts that tasks take from each other, on HRNet.

Source: Brüggemann et al., ICCV 2021, arXiv 2104.13874, https://github.com/brdav/atrc
"""

from __future__ import annotations

from dataclasses import replace

from polyptych.decoders.atrc import ATRC, NONE, SOURCE_LABEL, TARGET_LABEL
from polyptych.encoders.shared import Shared
from polyptych.errors import InputError
from polyptych.published._backbones import HRNET, hrnet
from polyptych.published._base import Form, Parts, Repository, Row, Seen, one_saliency_logit
from polyptych.renaming import Rename, under

PAIR = "atrc_module.cp_blocks.{task}.{sender}"


def normed(theirs: str, ours: str, first: str = "0", norm: str = "1") -> tuple[Rename, Rename]:
    """A convolution and its BatchNorm; ``first`` and ``norm`` are their places in ours."""
    return (Rename(f"{theirs}.conv.*", f"{ours}.{first}.*"), Rename(f"{theirs}.bn.*", f"{ours}.{norm}.*"))


HEAD = (
    *normed("bottleneck.{task}", "features.{task}"),
    *normed("aux_conv.{task}", "regions.{task}"),
    Rename("aux_logits.{task}.*", "regions.{task}.3.*"),
    *normed(f"{PAIR}.query_project.{{i}}", "pairs.{task}.{sender}.query", "{3 * i}", "{3 * i + 1}"),
    *normed(f"{PAIR}.key_project.{{i}}", "pairs.{task}.{sender}.key", "{3 * i}", "{3 * i + 1}"),
    *normed(f"{PAIR}.value_project", "pairs.{task}.{sender}.value"),
    *normed("atrc_module.out_proj.{task}", "join.{task}"),
    *normed("atrc_module.bottleneck.{task}.0", "finish.{task}"),
    Rename("final_logits.{task}.*", "heads.{task}.*"),
)


def contexts(seen: Seen) -> str:
    """The contexts that every task takes from each task, a group of digits per task. A file shows which pairs have a
    context and which tasks have regions, but not the kinds of contexts, whose weights have the same shapes.

    Raises:
        InputError: the user does not give the kinds, or gives some that the file cannot have.
    """
    groups = {}
    for target in seen.tasks:
        taken = [seen.has(f"head.atrc_module.cp_blocks.{target}.{source}.*") for source in seen.tasks]
        name = f"genotype_{target}"
        number = seen.assume(name, None if any(taken) else 0.0, f"the kind of context that {target} takes from each of "
                             f"{', '.join(seen.tasks)}, as in atrc_genotype.json: a digit each, 0 none, 1 global, "
                             "2 local, 3 t-label, 4 s-label")
        group = f"{number:.0f}".zfill(len(taken))
        if number != round(number) or [digit != str(NONE) for digit in group] != taken or set(group) - set("01234"):
            fitting = "".join("3" if found else "0" for found in taken)
            raise InputError(f"--assume {name}", f"{number:g}", "a digit of 1 to 4 for each context in the file, 0 for "
                             f"each that is not there, such as {fitting}", "take those of the search's "
                             "atrc_genotype.json")
        groups[target] = group
    needed = {task for target, group in groups.items() for source, digit in zip(seen.tasks, group, strict=True)
              for task, kind in ((target, TARGET_LABEL), (source, SOURCE_LABEL)) if digit == str(kind)}
    found = set(seen.values("head.aux_logits.{task}.weight", "task"))
    if needed != found:
        raise InputError("--assume genotype_*", f"contexts of the regions of {', '.join(sorted(needed)) or 'no task'}",
                         f"contexts of those of {', '.join(sorted(found)) or 'no task'}, which the file has",
                         "take the digits of the search's atrc_genotype.json")
    return " ".join(groups.values())


def atrc(seen: Seen) -> Parts:
    task = next(iter(seen.tasks))
    regions = {seen.tasks[name]: seen.shape(f"head.aux_logits.{name}.weight")[0]
               for name in seen.values("head.aux_logits.{task}.weight", "task")}
    width = seen.shape(f"head.final_logits.{task}.weight")[1]
    decoder = ATRC.Config(contexts=contexts(seen), regions=regions, width=width, gain=0.0, auxiliary_weight=0.0)
    return Parts(replace(hrnet(seen, "backbone."), pad=False), Shared.Config(), decoder)


class ATRCRepository(Repository):
    """Images of NYUD are used at 425x560 without padding, those of PASCAL-Context padded to 512x512. No file states the
    kinds of its contexts: ``--assume genotype_semseg=3344 --assume genotype_depth=4344 ...``. If an import is trained
    further, its regions learn from the final losses alone. Searches and heads with one kind of context cannot be
    imported; neither can BMTAS, the encoder of their PASCAL-Context result, which is not in this repository."""

    page = "https://github.com/brdav/atrc"
    license = "MIT, but its CUDA kernels are used by permission"
    files = ("none published; its training writes checkpoints of Lightning 1.1.8 with the network under state_dict, "
             "and the search atrc_genotype.json beside them")
    order = ("semseg", "depth", "human_parts", "sal", "normals", "edge")
    prefix = ""
    recipes = ("nyud_atrc", "pascal_atrc")
    left_out = ("criterion.*",)
    forms = (
        Form("ATRC", signs=("head.atrc_module.bottleneck.{task}.0.conv.weight",),
             never=("head.atrc_module.cp_blocks.{task}.{sender}.op_list.*",), parts=atrc, finish=one_saliency_logit(""),
             outputs=("head.final_logits.{task}.weight",), invented=("decoder.passes",),  # of a search
             rules=(*under("backbone.", "encoder.backbone.", HRNET), *under("head.", "decoder.", HEAD))),
    )
    rows = (Row("ATRC, HRNet-W48", "mIoU 46.33, RMSE 0.5363, normals 20.18, odsF 77.94", "ATRC-N"),)
