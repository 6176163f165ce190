"""A trained detector to one file that runs elsewhere.

* :mod:`smnas.deploy.export`: a checkpoint to a verified ONNX file or engine.
* :mod:`smnas.deploy.graph`: a detector as an ONNX graph, in operators and a precision.
* :mod:`smnas.deploy.agreement`: an exported file against its checkpoint, box by box.
* :mod:`smnas.deploy.accuracy`: what an export costs in AP.
* :mod:`smnas.deploy.latency`: the latency of exported files, in turns.
* :mod:`smnas.deploy.ranked`: the ranked detectors exported, evaluated and timed as files.
"""
