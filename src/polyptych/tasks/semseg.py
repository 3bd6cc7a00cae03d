"""Semantic segmentation: the class of every pixel."""

from polyptych.tasks._class_map import ClassMap


class SemanticSegmentation(ClassMap):
    """Cross entropy; measured by mIoU, the mean intersection over union in percent, from one confusion matrix
    over the whole set. (The mIoU of MTAN's 2019 tables is a mean over images: ``accumulation="image"`` and
    ``union_unlabeled=True``.)"""
