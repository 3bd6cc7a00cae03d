"""Part segmentation: which part of a person (or another object) every pixel shows."""

from polyptych.tasks._class_map import ClassMap


class PartSegmentation(ClassMap):
    """Cross entropy; measured by mIoU in percent over all classes **including the background**, which is
    class 0 (7 classes on PASCAL-Context). If left and right parts are distinguished, a flip swaps them.

    A dataset marks an image that shows no part at all as invalid; published protocols leave such images out.
    """

    standard_weight: float = 2.0
