"""Data sets: COCO-format folders, decoding, letterboxing, augmentation, batches, and generated shapes.

* :mod:`smnas.data.coco`: a folder on disk, checked on opening (:mod:`smnas.data.annotations` holds the rules).
* :mod:`smnas.data.contents`: what makes two data sets the same.
* :mod:`smnas.data.image`: any image file to ``uint8`` RGB.
* :mod:`smnas.data.letterbox`: image to canvas and boxes back.
* :mod:`smnas.data.augment`: flips, scale and colour jitter, mosaics.
* :mod:`smnas.data.loader`: training and evaluation batches.
* :mod:`smnas.data.shapes`: the generated data set.
"""
