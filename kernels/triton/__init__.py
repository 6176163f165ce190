"""Triton kernels, one file per operator, imported only when one of them runs.

Launch parameters are a function of the shapes alone, not autotuned: tuning would stall a search at every new
architecture, and a resumed training run could sum in another order than before.
"""
