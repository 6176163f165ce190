"""How good a detector is: the 12 COCO numbers of anything that maps images to detections.

* :mod:`smnas.evaluation.coco_eval`: COCO results to the 12 numbers.
* :mod:`smnas.evaluation.predict`: a detector, run over a split, to COCO results.
"""
