"""Names, ids and colors of what can be seen in a room."""

from __future__ import annotations

CLASSES = ("wall", "floor", "ceiling", "door", "window", "picture", "table", "chair", "sofa", "bed", "cabinet",
           "shelf", "lamp", "plant", "object", "person")
(WALL, FLOOR, CEILING, DOOR, WINDOW, PICTURE, TABLE, CHAIR, SOFA, BED, CABINET,
 SHELF, LAMP, PLANT, OBJECT, PERSON) = range(len(CLASSES))

CLASS_COLORS = ((174, 199, 232), (152, 118, 84), (238, 238, 226), (197, 140, 92), (88, 205, 235), (255, 152, 150),
                (255, 127, 14), (188, 189, 34), (31, 119, 180), (148, 103, 189), (140, 86, 75), (227, 119, 194),
                (255, 221, 84), (44, 160, 44), (127, 127, 127), (214, 39, 40))

PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = range(1, len(PARTS))
PART_COLORS = ((30, 30, 34), (255, 190, 120), (66, 133, 244), (52, 168, 83), (173, 220, 92), (234, 67, 53),
               (171, 71, 188))

JOINTS = ("head", "left shoulder", "right shoulder", "left elbow", "right elbow", "left wrist", "right wrist",
          "left hip", "right hip", "left knee", "right knee", "left ankle", "right ankle")
JOINT_MIRROR = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12))
SKELETON = ((1, 2), (1, 3), (3, 5), (2, 4), (4, 6), (1, 7), (2, 8), (7, 8), (7, 9), (9, 11), (8, 10), (10, 12),
            (0, 1), (0, 2))
JOINT_COLORS = ((255, 255, 255), *((60, 160, 255), (255, 120, 60)) * 6)
