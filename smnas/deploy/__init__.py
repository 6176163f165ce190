"""A trained detector to one file that runs elsewhere, and that file on pictures.

* :mod:`smnas.deploy.export`: a checkpoint to a verified ONNX file or engine.
* :mod:`smnas.deploy.graph`: a detector as an ONNX graph, in operators and a precision.
* :mod:`smnas.deploy.accuracy`: what an export costs in AP.
* :mod:`smnas.deploy.engine_file`: engines and their manifests on disk.
* :mod:`smnas.deploy.runtime`: detector files as functions of canvases.
* :mod:`smnas.deploy.graphed`: a checkpoint on a GPU as CUDA graphs.
* :mod:`smnas.deploy.detector`: ``Detector(path)(images)``, named boxes in the pictures' own pixels.
* :mod:`smnas.deploy.detect`: pictures, videos and a camera to results and drawn copies.
* :mod:`smnas.deploy.pipeline`: the stages between a picture and its boxes, side by side.
* :mod:`smnas.deploy.ranked`: the ranked detectors exported, evaluated and timed as files.
"""
