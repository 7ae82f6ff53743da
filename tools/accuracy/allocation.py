# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the suites on bits that are allocated consist of."""

from typing import Any

DETECTORS = ('retinanet', 'mask-rcnn_swin')
RECIPES = ('f_lbq_dp', 'f_lbq_lg')
FIXED = ('gptq', 'adalog', 'reg_ptq')
#: for attention alone
ATTENTION = 'gptq_codebook_attention'
#: a half of a bit less than ``--bits`` says, for weights and inputs
HALF = dict(mean_weight_bits=3.5, mean_act_bits=3.5)


def _with(recipe: str, **args: Any) -> dict:
    return dict(recipe=recipe, pass_args=dict(AllocateBits=args))


#: groups of 128 channels as in the paper, or whole layers
_GRAINS: dict[str, dict] = {'': {}, '_layers': dict(channels=None)}
_OUTPUTS = dict(objective='output', scope='*', channels=None)
VARIANTS = {
    **{
        f'{recipe}{grain}{mean}': _with(recipe, **args, **more)
        for recipe in RECIPES
        for grain, args in _GRAINS.items()
        for mean, more in {'': {}, '_3.5': HALF}.items()
        if args or more
    },
    # all of the detector, by what it gives
    'outputs': _with('f_lbq_dp', **_OUTPUTS),
    'outputs_3.5': _with('f_lbq_dp', **_OUTPUTS, **HALF),
    # as many bit operations as with one width
    **{
        f'{recipe}_bops': _with(f'{recipe}_mixed', budget='bops')
        for recipe in (*FIXED, ATTENTION)
    },
}
GROUPED = [f'{recipe}{grain}' for recipe in RECIPES for grain in _GRAINS]


def suites(cells: Any) -> dict[str, list[tuple]]:
    """Cells of the suites on allocated bits.

    Args:
        cells (Callable): Makes cells of detectors, methods and widths.
    """
    both = [name for one in FIXED for name in (one, f'{one}_bops')]
    return {
        # F-LBQ: mean widths of 4, 3.5, 3 and 5
        'allocated': [
            *cells(DETECTORS, ('uniform', *GROUPED, 'outputs'), ('w4a4',)),
            *cells(
                DETECTORS,
                (*(f'{one}_3.5' for one in GROUPED), 'outputs_3.5'),
                ('w4a4',),
            ),
            *cells(
                DETECTORS, ('uniform', *GROUPED, 'outputs'), ('w3a3', 'w5a5')
            ),
        ],
        # bits that fit each tensor, against one width
        'mixed': [
            *cells(('detr', 'yolox-nano', *DETECTORS), both, ('w4a4',)),
            *cells(('detr',), (ATTENTION, f'{ATTENTION}_bops'), ('w4a4',)),
        ],
    }
