"""A trained detector to one file that runs elsewhere, and that file on pictures.

* :mod:`smnas.deploy.export`: a checkpoint to a verified ONNX file.
* :mod:`smnas.deploy.runtime`: detector files as functions of canvases.
* :mod:`smnas.deploy.detector`: ``Detector(path)(images)``, named boxes in the pictures' own pixels.
* :mod:`smnas.deploy.detect`: pictures, folders and patterns to JSON and drawn copies.
* :mod:`smnas.deploy.ranked`: the ranked detectors exported, evaluated and timed as files.
"""
