"""Latency profiling of any ``nn.Module``; independent of object detection.

- ``workload``, ``work``, ``devices``, ``precision``: what is timed, how much work it is, where and in which precision.
- ``timing``: time a callable until its median is known; conditions, cold caches.
- ``graphs``: ONNX export, half precision, 8-bit quantisation.
- ``engines``: build TensorRT engines and store them.
- ``backends``: run a workload in PyTorch, ONNX Runtime or TensorRT.
- ``table``: the latency table, an SQLite file.
- ``prediction``: end-to-end latency from block latencies.
- ``measuring``: fill a latency table.

Only submodules that need torch import it.
"""
