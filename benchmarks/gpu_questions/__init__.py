"""The questions of ``benchmarks/gpu.py``, one module each; :mod:`gpu_questions.record` is what they share."""
