"""A few architectures hold every workload of all: against the workloads of all."""

from collections import Counter
from dataclasses import replace

import pytest

from smnas.latency import coverage
from smnas.latency.coverage import by_demand, covering
from smnas.latency.workloads import detector_workloads
from smnas.space.architecture import Architecture, C4Spec
from smnas.space.preset import load_space, preset_names


def _keys(architectures: list[Architecture]) -> set[str]:
    return {workload.key for one in architectures for workload in detector_workloads(one, 3)}


@pytest.mark.slow
def test_nothing_is_missing() -> None:
    space = load_space("nano")
    backbones = [b for b in space.backbones if str(b) in ("basicblock_8_1-2-2", "bottleneck_8_1-2-2")]
    necks = [neck for neck in space.necks if isinstance(neck, C4Spec) or str(neck).endswith("_32")]
    heads = [head for head in space.heads if str(head) in ("rcnn_64", "cascade_2_64", "fcos_32_1")]
    every = [
        replace(a, input_width=96, input_height=72)
        for a in space.structures
        if a.backbone in backbones and a.neck in necks and a.head in heads and a.input_width == 96
    ]
    few = covering(every)
    assert len(few) < len(every)
    assert _keys(few) == _keys(every)


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_is_covered_by_a_small_part_of_it(preset: str) -> None:
    structures = load_space(preset).structures
    few = covering(structures)
    assert set(few) <= set(structures)
    assert len(few) < len(structures) / 2
    assert {a.backbone for a in few} == {a.backbone for a in structures}
    assert {a.head for a in few} == {a.head for a in structures}


def test_what_most_detectors_need_comes_first() -> None:
    """Against the plain greedy choice, which looks at every one that is left each time."""
    structures = list(load_space("nano").structures)[::37]
    chosen = covering(structures)
    ordered = by_demand(chosen, structures)
    assert sorted(map(str, ordered)) == sorted(map(str, chosen))
    demand = Counter(part for architecture in structures for part in coverage._parts(architecture))
    seen: set[object] = set()
    for number, architecture in enumerate(ordered):
        brings = [sum(demand[part] for part in coverage._parts(one) - seen) for one in ordered[number:]]
        assert brings[0] == max(brings)
        seen |= coverage._parts(architecture)
