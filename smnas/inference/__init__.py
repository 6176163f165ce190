"""Detector files on images, videos and cameras.

* :mod:`smnas.inference.detector`: ``Detector(path)(images)``, named boxes in image pixels.
* :mod:`smnas.inference.runtime`: detector files as functions of canvases.
* :mod:`smnas.inference.engine_file`: engines and their manifests on disk.
* :mod:`smnas.inference.cuda_graphs`: a checkpoint on a GPU as CUDA graphs.
* :mod:`smnas.inference.pipeline`: overlapping stages from image to boxes.
* :mod:`smnas.inference.detect`: images, videos and a camera to results and drawn copies.
"""
