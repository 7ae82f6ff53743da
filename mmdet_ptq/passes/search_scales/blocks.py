# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Block after block is searched for scales."""

from collections.abc import Sequence
from functools import partial

from ...calibration import Images, Session, frozen
from ...detectors import adapter_for
from ...losses import GradientWeighted, build_loss
from ...structures import Unit
from ..reconstruct.progress import export, resume
from .block import BlockGrid, BlockSearch, quantizer_of
from .component import Held


def search_blocks(
    session: Session,
    wanted: Sequence[Held],
    grid: BlockGrid,
    loss: dict,
    count: int,
) -> None:
    """Searches all blocks in execution order; can be resumed after each.

    Args:
        session (Session): The running quantization.
        wanted (Sequence[Held]): Layers and tensors, those of a layer in the
            order of their turns.
        grid (BlockGrid): What is tried.
        loss (dict): Loss whose gradients weigh the errors.
        count (int): How many images, of each rank.
    """
    weigh = build_loss(loss, 'SearchScales.loss', GradientWeighted)
    of_outputs = weigh.build_of('SearchScales.loss')
    units = session.graph.units
    seen: set[int] = set()
    turns = [turns_of(session, unit, wanted, seen) for unit in units]
    done = resume(session)
    with (
        session.resumable(partial(export, session)),
        session.cache() as cache,
        frozen(session.model),
        session.stage('scale search'),
    ):
        adapter = adapter_for(session.model, session.graph, True)
        images = Images(session, cache, adapter, [of_outputs], count)
        search = BlockSearch(session, images, of_outputs, weigh, grid)
        for k in range(done, len(units)):
            session.progress('scales', units[k].name, k, len(units))
            if turns[k]:
                search.search(units[k], turns[k])
            session.state['units'] = k + 1
            session.save()


def turns_of(
    session: Session, unit: Unit, wanted: Sequence[Held], seen: set[int]
) -> list[list[Held]]:
    """What is searched in a block, layer by layer.

    Args:
        session (Session): The running quantization.
        unit (Unit): The block.
        wanted (Sequence[Held]): All that is to be searched, of a layer in
            the order of their turns.
        seen (set[int]): Quantizers of earlier blocks, which keep what they
            found there; those of this one are added.
    """
    sharing = {port: group for group in session.plan.groups for port in group}
    found = []
    for name in unit.layers:
        for one in (held for held in wanted if held[0] == name):
            key = id(quantizer_of(session, one))
            tied = one[1] == 'weight' and session.layers[name].tied
            if key not in seen and not tied:
                seen.add(key)
                others = sharing.get(one, [])
                found.append([one, *(h for h in others if h != one)])
    return found
