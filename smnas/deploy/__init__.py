"""Deployment of a trained detector as one file.

* :mod:`smnas.deploy.export`: a checkpoint to a verified ONNX file or engine.
* :mod:`smnas.deploy.graph`: a detector as an ONNX graph, in operators and a precision.
* :mod:`smnas.deploy.agreement`: an exported file against its checkpoint, box by box.
* :mod:`smnas.deploy.accuracy`: AP lost by an export.
* :mod:`smnas.deploy.latency`: interleaved latency of exported files.
* :mod:`smnas.deploy.ranked`: the ranked detectors exported, evaluated and timed as files.
"""
