"""The Triton kernels, a file for each operator; loaded only once one of them runs.

How a kernel is launched is a function of the shapes alone, written beside it. It is not found by trial on the device:
that would stall a search at every new architecture, and a training run that resumes after an interruption could add in
another order than before.
"""
