"""The 12 COCO numbers of anything that maps images to detections.

* :mod:`smnas.evaluation.coco_eval`: the 12 numbers of COCO results.
* :mod:`smnas.evaluation.predict`: COCO results of a detector on a split.
"""
