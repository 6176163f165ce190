"""Everything the commands do, as functions: values in, values out, nothing printed.

The arguments have the names of the commands' options. Everything resumes: the same call continues where a killed one
stopped, and returns at once where all is done. ``on_progress`` is called with a phase, how much of it is done, of how
much (None where that is unknown), and the current item; notes go to the logger ``smnas``.
"""

from smnas.api.arguments import OnProgress
from smnas.api.detectors import DEFAULT_SCORE, Evaluation, TrainingRun, build, detect, evaluate, export, train
from smnas.api.latency import Profile, build_engines, estimate, measured, profile
from smnas.api.runs import SearchRun, rank, report
from smnas.api.searches import search
from smnas.api.supernets import train_supernet

__all__ = [
    "DEFAULT_SCORE",
    "Evaluation",
    "OnProgress",
    "Profile",
    "SearchRun",
    "TrainingRun",
    "build",
    "build_engines",
    "detect",
    "estimate",
    "evaluate",
    "export",
    "measured",
    "profile",
    "rank",
    "report",
    "search",
    "train",
    "train_supernet",
]
