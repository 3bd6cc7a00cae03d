"""The protocols that published tables of the field belong to, by id.

What training a protocol prescribes is stated for the reader and not checked: a table compares methods *because* they
differ in training. What is checked is how numbers are measured (:mod:`polyptych.protocols.qualification`).
"""

from __future__ import annotations

from polyptych.errors import InputError, nearest
from polyptych.protocols.protocol import Measure, Protocol

_SEGMENTATION = {"mIoU": True, "pixel_accuracy": True}
_MIOU = {"mIoU": True}
_DEPTH = {"abs": False, "rel": False}
_RMSE = {"RMSE": False}
_ANGLES = {"mean": False, "median": False, "within_11.25": True, "within_22.5": True, "within_30": True}
_MEAN = {"mean": False}
_DELTAS = {**_DEPTH, "delta1": True, "delta2": True, "delta3": True}
_ODS = {name: Measure({"odsF": True}, options={"benchmark": name}) for name in ("nyud", "pascal")}

# The edge tool that the field's papers share takes test_new for PASCAL, not all 5105 images.
_ODS_NEW = {name: Measure({"odsF": True}, options={"benchmark": name}, images=2498)
            for name in ("pascal", "pascal_survey")}

_GLOBAL_IOU = {"require_tp": False, "union_unlabeled": False}
_SEG = Measure(_SEGMENTATION, options=_GLOBAL_IOU)
_SEG_2019 = Measure(_SEGMENTATION, "image", {"require_tp": False, "union_unlabeled": True})
_CLASSES = Measure(_MIOU, options=_GLOBAL_IOU)
_SEG_ADA = Measure(_SEGMENTATION, options={"require_tp": True})

_BATCH_3 = {"depth": Measure(_DEPTH, "batch"), "normals": Measure(_ANGLES, "batch")}
_ALL_LABELS = {"smallest": 0.0}
_BATCH_CS = {"inverse_depth": Measure(_DEPTH, "batch", _ALL_LABELS)}
_GLOBAL_CS = {"inverse_depth": Measure(_DEPTH, options=_ALL_LABELS)}
_SALIENT_IOU = Measure({"mIoU_per_image": True})
_SALIENT_F = Measure({"maxF": True}, options={"double_sigmoid": False})
_SALIENT_INVPT = Measure({"maxF": True}, options={"double_sigmoid": True})
_PASCAL = {"semseg": _CLASSES, "parts": _CLASSES, "normals": Measure(_MEAN), "boundaries": _ODS_NEW["pascal"]}
_NYUD = {"semseg": _CLASSES, "depth": Measure(_RMSE), "normals": Measure(_MEAN), "boundaries": _ODS["nyud"]}
_HEAT = Measure({"abs": False}, "batch_weighted")

_NYU_13, _NYU_40 = "NYUv2, 13 classes, arrays of 288x384", "NYUD-MT, 40 classes"
_CS_7 = "Cityscapes, 7 classes, arrays of 128x256"
_NPY, _NPY_CS = "nyuv2-13-288x384-mtan", "cityscapes-7-128x256-mtan"
_SURVEY_MT, _ATRC_MT, _INVPT_MT = (f"nyuv2-40-*-folder|{packing}" for packing in ("survey", "survey|invpt", "invpt"))
_PASCAL_MT = "pascal_context-21-*-pascal_mt"
_ADA_CS, _ADA_N = "cityscapes-19-256x512-mtan", "nyuv2-40-480x640-adashare"
_LAST_10 = "mean over the last 10 epochs, measured on the test images"

_MTAN = "Liu, Johns, Davison, CVPR 2019, arXiv 1803.10704"
_CAGRAD = "Liu et al., NeurIPS 2021, arXiv 2110.14048"
_LIBMTL = "Lin, Zhang, JMLR 2023, arXiv 2203.14338"
_ADASHARE = "Sun et al., NeurIPS 2020, arXiv 1911.12423"
_AUTOMTL = "Zhang, Liu, Guan, NeurIPS 2022, arXiv 2110.13076"
_ASTMT = "Maninis, Radosavovic, Kokkinos, CVPR 2019, arXiv 1904.08918"
_SURVEY = "Vandenhende et al., TPAMI 2021, arXiv 2004.13379"
_ATRC = "Brüggemann et al., ICCV 2021, arXiv 2104.13874"
_INVPT = "Ye, Xu, ECCV 2022, arXiv 2203.07997"
_GRADNORM = "Chen et al., ICML 2018, arXiv 1711.02257"

_MTAN_TRAINING = "200 epochs of SegNet, Adam 1e-4 halved at 100, batch 2, no augmentation"
_CAG_TRAINING = ("200 epochs of SegNet-MTAN, Adam 1e-4, batch 2, scale-crop (depth divided by the scale) and flip, "
                 "3 seeds")
_ADA_OBSTACLE = ("its pixel accuracy counts unlabeled Cityscapes pixels as wrong, its delta limits are inclusive and "
                 "its NYUv2 normals are angles between raw 8-bit vectors; we reproduce none of these")

_ALL = (
    Protocol("MTAN-19", _NYU_13, _NPY, 654, (288, 384), {"semseg": _SEG_2019, **_BATCH_3}, _MTAN_TRAINING, _LAST_10,
             "mIoU and accuracy per image, unlabeled pixels in the union", _MTAN, batch_size=2),
    Protocol("MTAN-19-CS", _CS_7, _NPY_CS, 500, (128, 256), {"semseg": _SEG_2019, **_BATCH_CS},
             "as MTAN-19, batch 8", _LAST_10, "mIoU per image; rel is a raw mean over inverse depth", _MTAN,
             batch_size=8),
    Protocol("MTAN-20", _NYU_13, _NPY, 654, (288, 384), {"semseg": _SEG, **_BATCH_3},
             f"{_MTAN_TRAINING} or with it", _LAST_10,
             "one confusion matrix, about 8 points of mIoU above MTAN-19; the rest are means over batches of 2", _MTAN,
             batch_size=2),
    Protocol("CAG", _NYU_13, _NPY, 654, (288, 384), {"semseg": _SEG, **_BATCH_3}, _CAG_TRAINING, _LAST_10,
             "delta_m over nine metrics, lower is better", _CAGRAD, batch_size=2),
    Protocol("CAG-CS", _CS_7, _NPY_CS, 500, (128, 256), {"semseg": _SEG, **_BATCH_CS},
             "200 epochs, batch 8, scale-crop in which inverse depth is divided by the scale (it should be multiplied)",
             _LAST_10, "inverse depth where it is not 0; rel is a raw mean over it", _CAGRAD, batch_size=8),
    Protocol("LIBMTL", _NYU_13, _NPY, 654, (288, 384),
             {"semseg": _SEG, "depth": Measure(_DEPTH), "normals": Measure(_ANGLES)},
             "200 epochs of ResNet-50 with a DeepLab head, batch 8, no augmentation by default",
             "the epoch with the best improvement", "all pixels count equally, also for depth and normals", _LIBMTL),
    Protocol("LIBMTL-CS", _CS_7, _NPY_CS, 500, (128, 256), {"semseg": _SEG, **_GLOBAL_CS},
             "as LIBMTL, batch 64", "the epoch with the best improvement", "all pixels count equally", _LIBMTL),
    Protocol("AUTOL", _NYU_13, _NPY, 654, (288, 384),
             {"semseg": _CLASSES, "depth": Measure({"abs": False}), "normals": Measure(_MEAN)},
             "ResNet-50 from scratch, SGD 0.1, scale, crop and flip, 3 seeds", "as published, not known to us",
             "one metric per task; papers print abs times 100", "Liu et al., TMLR 2022, arXiv 2202.03091"),
    Protocol("EMA", _NYU_13, _NPY, 654, (288, 384),
             {"semseg": _CLASSES, "depth": Measure(_DEPTH), "normals": Measure(_MEAN)},
             "HRNet-18, flip", "as published, not known to us",
             "its code flips test images at random too where training is augmented; we never do", "arXiv 2401.11124"),
    Protocol("EMA-CS", "Cityscapes, 19 classes, arrays of MTAN", "cityscapes-19-*-mtan", 500, "native",
             {"semseg": _CLASSES, **_GLOBAL_CS}, "HRNet-18, flip", "as published, not known to us",
             "as EMA", "arXiv 2401.11124"),
    Protocol("ADA-CS", "Cityscapes, 19 classes, arrays of 256x512", _ADA_CS, 500, "native",
             {"semseg": _SEG_ADA, "inverse_depth": Measure(_DELTAS, "batch_weighted")}, "crops of 224",
             "not known to us", "mIoU only over classes with a hit", _ADASHARE, obstacle=_ADA_OBSTACLE),
    Protocol("ADA-N", "NYUv2 of AdaShare, 480x640, 40 classes", _ADA_N, 654, "native",
             {"semseg": _SEG_ADA, "normals": Measure(_ANGLES), "depth": Measure(_DELTAS, "batch_weighted")},
             "crops of 321", "not known to us", "mIoU only over classes with a hit", _ADASHARE, obstacle=_ADA_OBSTACLE),
    Protocol("ADA-T", "Tiny-Taskonomy", "", 54000, (256, 256),
             {"semseg": Measure({"cross_entropy": False}), "normals": Measure({"cosine": True}),
              "depth": Measure({"abs": False}, "batch_weighted"), "keypoints2d": _HEAT, "edge_texture": _HEAT},
             "crops of 224", "not known to us", "losses instead of metrics, on transformed labels", _ADASHARE, "R",
             obstacle="it reports losses on the labels of its own transforms (logarithmic depth), not metrics"),
    Protocol("AUTOMTL-CS", "as ADA-CS", _ADA_CS, 500, "native",
             {"semseg": _SEG_ADA, "inverse_depth": Measure(_DELTAS, "batch_weighted")}, "DeepLab-ResNet34",
             "not known to us", "as ADA-CS with another single-task reference", _AUTOMTL, obstacle=_ADA_OBSTACLE),
    Protocol("AUTOMTL-N", "as ADA-N", _ADA_N, 654, "native",
             {"semseg": _SEG_ADA, "normals": Measure(_ANGLES), "depth": Measure(_DELTAS, "batch_weighted")},
             "DeepLab-ResNet34", "not known to us", "as ADA-N with another single-task reference", _AUTOMTL,
             obstacle=_ADA_OBSTACLE),
    Protocol("AUTOMTL-T", "as ADA-T", "", 54000, (256, 256),
             {"semseg": Measure({"cross_entropy": False}), "normals": Measure({"cosine": True}),
              "depth": Measure({"abs": False}, "batch_weighted"), "keypoints2d": _HEAT, "edge_texture": _HEAT},
             "DeepLab-ResNet34", "not known to us", "as ADA-T with another single-task reference", _AUTOMTL, "R",
             obstacle="as ADA-T"),
    Protocol("ASTMT-N", "NYUD-MT, 41 classes with the background", "nyuv2-41-*-folder|astmt", 654, (512, 512),
             {**_NYUD, "depth": Measure(_RMSE, "image")}, "ResNet, flip, scale and rotation", "the last epoch",
             "41 classes; RMSE is a mean over images", _ASTMT),
    Protocol("ASTMT-P", "PASCAL-Context, 5 tasks", _PASCAL_MT, 5105, (512, 512),
             {**_PASCAL, "saliency": _SALIENT_IOU, "boundaries": _ODS["pascal"]}, "ResNet, flip, scale and rotation",
             "the last epoch", "saliency by mIoU; odsF with NMS on all 5105 images", _ASTMT),
    Protocol("SURV-N", _NYU_40, _SURVEY_MT, 654, (480, 640), {"semseg": _CLASSES, "depth": Measure(_RMSE)},
             "100 epochs, flip and scale 1 to 1.5 (depth divided by the scale)", "the best of the last 10 epochs",
             "RMSE over all pixels; normals and boundaries only as auxiliary tasks", _SURVEY),
    Protocol("SURV-P", "PASCAL-Context, 5 tasks", _PASCAL_MT, 5105, (512, 512),
             {**_PASCAL, "saliency": _SALIENT_IOU, "boundaries": _ODS_NEW["pascal_survey"]},
             "100 epochs, flip, scale and rotation", "the best of the last 10 epochs",
             "saliency by mIoU; odsF without NMS on 2498 of the images, not comparable with ASTMT-P", _SURVEY),
    Protocol("ATRC-N", _NYU_40, _ATRC_MT, 654, "native", _NYUD, "40,000 steps, scale, crop to 425x560, flip, colors",
             "the last step", "RMSE over all pixels of the whole image", _ATRC),
    Protocol("ATRC-P", "PASCAL-Context, 5 tasks", _PASCAL_MT, 5105, "native", {**_PASCAL, "saliency": _SALIENT_F},
             "40,000 steps, scale, crop to 512x512, flip, colors", "the last step",
             "saliency by maxF with beta^2 0.3; odsF with NMS on 2498 of the images", _ATRC),
    Protocol("INVPT-N", _NYU_40, _INVPT_MT, 654, "native", _NYUD, "40,000 steps, scale, crop to 448x576, flip, colors",
             "the last step", "as ATRC-N; images are padded to 448x576", _INVPT),
    Protocol("INVPT-P", "PASCAL-Context, 5 tasks", _PASCAL_MT, 5105, "native", {**_PASCAL, "saliency": _SALIENT_INVPT},
             "40,000 steps, scale, crop to 512x512, flip, colors", "the last step",
             "as ATRC-P, but saliency passes the sigmoid twice", _INVPT),
    Protocol("TP-CS3D", "Cityscapes with 3D boxes", "", 500, (768, 1536),
             {"semseg": _CLASSES, "disparity": Measure(_RMSE)}, "images at three quarters", "the last step",
             "RMSE of disparity in (0, 80) on labels of 512x1024", "Ye, Xu, ICLR 2023",
             obstacle="it measures on labels brought to 512x1024 beside 3D detection, where we measure at native size"),
    Protocol("VDD", "Visual Decathlon 1.0", "", 0, (72, 72),
             {name: Measure({"accuracy": True}) for name in (
                 "imagenet12", "aircraft", "cifar100", "daimlerpedcls", "dtd", "gtsrb", "vgg-flowers", "omniglot",
                 "svhn", "ucf101")},
             "WRN-28-4, SGD 0.1", "as submitted", "test accuracy of ten classifications",
             "Rebuffi, Bilen, Vedaldi, NeurIPS 2017, arXiv 1705.08045",
             obstacle="the test labels are on the organizers' server; accuracy on validation images is another number"),
    Protocol("GN-S", "NYUv2 with 13 classes, labels of 80x80", "", 654, (320, 320),
             {"depth": Measure(_RMSE), "semseg": Measure({"mIoU_error": False}),
              "normals": Measure({"cosine_error": False})}, "VGG SegNet", "not known to us",
             "100 - mIoU and 1 - |cosine|", _GRADNORM, "R", obstacle="its labels have 80x80 pixels"),
    Protocol("GN-K", "NYUv2 video frames with 48 room keypoints", "", 0, (320, 320),
             {"depth": Measure(_RMSE), "keypoints": Measure({"error": False}),
              "normals": Measure({"cosine_error": False})}, "VGG SegNet", "not known to us",
             "keypoint error in percent of the diagonal", _GRADNORM, "R", obstacle="its data were never released"),
)

PROTOCOLS: dict[str, Protocol] = {protocol.id: protocol for protocol in _ALL}


def find(name: str) -> Protocol:
    """The protocol of that id.

    Raises:
        InputError: there is none; the message lists the nearest.
    """
    if name not in PROTOCOLS:
        raise InputError(f"protocol '{name}'", "an unknown id", nearest(name, PROTOCOLS),
                         "see `polyptych list protocols`")
    return PROTOCOLS[name]
