# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the suites on transformers consist of."""

from typing import Any

from mmdet_ptq.quant_cfg import load_recipe

DETECTORS = ('mask-rcnn_swin', 'cascade-mask-rcnn_swin', 'detr')
CALIBRATED = (
    'uniform',
    'ptq_for_vit',
    'ptq4vit',
    'apq_vit',
    'fq_vit',
    'repq_vit',
    'noisyquant',
    'adalog',
    'igq_vit',
    'group_static',
)
#: whose papers have symmetric grids
SYMMETRIC = ('ptq_for_vit', 'ptq4vit', 'apq_vit')
AS_PUBLISHED = (
    *(f'{name}_symmetric' for name in ('uniform', *SYMMETRIC)),
    'fq_vit_minmax',
    'fq_vit_norms_float',
)
#: whose AP on Swin is too close for one seed to tell
CLOSE = ('uniform', 'ptq4vit', 'repq_vit', 'adalog', 'igq_vit')
LEARNED = ('adalog_recon', 'repq_recon', 'igq_recon')

SOFTMAX = dict(
    uniform=dict(type='UniformQuantizer'),
    log2=dict(type='LogQuantizer', fixed_scale=1.0),
    sqrt2=dict(type='LogQuantizer', base='sqrt2', fixed_scale=1.0),
    adalog=dict(type='AdaLogQuantizer', fixed_scale=1.0),
)
GELU = dict(
    uniform=dict(type='UniformQuantizer'),
    twin=dict(type='TwinUniformQuantizer', form='gelu'),
    log2=dict(type='LogQuantizer'),
    adalog=dict(type='AdaLogQuantizer'),
)
GROUPS = (1, 4, 8, 12, 16)
CLIPPED = (0.05, 1.0)
LOOKUP = 'gptq_codebook_attention'
#: of DETR, by the name of what has 8 bits
SPARED: dict[str, dict] = dict(
    weights=dict(match='*', weight=dict(bits=8)),
    backbone=dict(match='@backbone', act=dict(bits=8)),
    projections=dict(match='@linear', act=dict(bits=8)),
    products=dict(match='@matmul', act=dict(bits=8)),
    encoder=dict(match='encoder.*', act=dict(bits=8)),
    decoder=dict(match='decoder.*', act=dict(bits=8)),
    head=dict(match='bbox_head.*', act=dict(bits=8)),
)


def _igq(**act: Any) -> dict:
    """``igq_vit`` with other inputs of linear layers."""
    return dict(recipe='igq_vit', rules=[dict(match='@linear', act=act)])


def _symmetric(recipe: str) -> dict:
    """Grids as in the paper; linear layers have one for a whole weight."""
    act = dict(type='UniformQuantizer', symmetric=True)
    found = load_recipe(recipe)['rules']
    return dict(
        recipe=recipe,
        rules=[
            dict(match='*', weight=dict(symmetric=True), act=act),
            dict(match='@linear', weight=dict(granularity='tensor')),
            *found[1:],
        ],
    )


def _with_positions() -> list[dict]:
    """Passes of ``gptq`` with ``SplitPositions``."""
    found = load_recipe('gptq')['passes']
    return [
        *found[:1],
        dict(type='SplitPositions'),
        *(one for one in found[1:] if one['type'] != 'ScaleInputs'),
    ]


VARIANTS = {
    **{
        f'softmax_{name}': dict(
            recipe='adalog', rules=[dict(match='@softmax', act=act)]
        )
        for name, act in SOFTMAX.items()
    },
    **{
        f'gelu_{name}': dict(
            recipe='adalog', rules=[dict(match='@gelu', act=act)]
        )
        for name, act in GELU.items()
    },
    **{
        f'igq_{n}': _igq(type='InstanceGroupQuantizer', num_groups=n)
        for n in GROUPS
    },
    **{
        # chosen by distance, as in the paper
        f'igq_{n}_means': _igq(num_groups=n, clipped=None)
        for n in GROUPS[1:3]
    },
    # how much of a channel a grid is taken to clip
    **{
        f'igq_8_clipped_{share}': _igq(num_groups=8, clipped=share)
        for share in CLIPPED
    },
    'igq_channel': _igq(type='UniformQuantizer', granularity='channel'),
    **{
        f'{name}_symmetric': _symmetric(name)
        for name in ('uniform', *SYMMETRIC)
    },
    'fq_vit_norms_float': dict(
        recipe='fq_vit', rules=[dict(match='@norm', skip=True)]
    ),
    'fq_vit_minmax': dict(
        recipe='fq_vit',
        pass_args=dict(
            Observe=dict(observer=dict(type='MinMaxObserver')),
            SetRanges=dict(weight_observer=dict(type='MinMaxObserver')),
        ),
    ),
    # what leads from plain rounding to the best recipe of DETR
    'uniform_scaled': dict(recipe='uniform', scale_inputs=True),
    'gptq_split': dict(
        recipe='gptq', scale_inputs=True, passes=_with_positions()
    ),
    'gptq_attention_static': dict(
        recipe='gptq_attention',
        rules=[
            dict(
                match=['@query', '@key'],
                act=dict(
                    type='UniformQuantizer',
                    granularity='channel',
                    per_level=True,
                ),
            )
        ],
    ),
    f'{LOOKUP}_unmixed': dict(recipe=LOOKUP, mix_heads=False),
    **{
        f'{recipe}_{name}_8': dict(recipe=recipe, rules=[rule])
        for recipe in (LOOKUP, 'adalog')
        for name, rule in SPARED.items()
    },
    # steps of equal ratio keep their errors at 8 bits
    'repq_vit_softmax_uniform': dict(
        recipe='repq_vit',
        rules=[dict(match='@softmax', act=SOFTMAX['uniform'])],
    ),
}


def suites(cells: Any) -> dict[str, list[tuple]]:
    """Cells of the suites on transformers.

    Args:
        cells (Callable): Makes cells of detectors, methods and widths.
    """
    every = *CALIBRATED, *LEARNED
    swin = DETECTORS[:2]
    gelu = [f'gelu_{n}' for n in GELU]
    return {
        # AdaLog, Table 5: every method at every width
        'adalog_a': [
            *cells(DETECTORS, every, ('w4a4',)),
            *cells(swin, CLOSE, ('w4a4',), (1, 2)),
            # with the grids and ranges of the papers, and without norms
            *cells(('mask-rcnn_swin', 'detr'), AS_PUBLISHED, ('w4a4',)),
            *cells(DETECTORS, every, ('w6a6', 'w8a8')),
            *cells(('detr',), ('repq_vit_softmax_uniform',), ('w6a6', 'w8a8')),
        ],
        # what a GELU gives
        'adalog_b': [
            *cells(swin, gelu, ('w4a4',)),
            *cells(swin[:1], gelu, ('w4a4',), (1, 2)),
        ],
        # what a softmax gives, at 4, 3 and 2 bits
        'adalog_c': cells(
            DETECTORS,
            [f'softmax_{n}' for n in SOFTMAX],
            ('w4a4', 'w4a4s3', 'w4a4s2'),
        ),
        # DETR: what each step brings, and what holds the rest
        'detr': [
            *cells(
                ('detr',),
                (
                    'uniform',
                    'uniform_scaled',
                    'gptq',
                    'gptq_split',
                    'gptq_attention_static',
                    'gptq_attention',
                    f'{LOOKUP}_bops',
                    *(f'{LOOKUP}_{name}_8' for name in SPARED),
                ),
                ('w4a4',),
            ),
            *cells(
                ('detr',), (f'{LOOKUP}_unmixed', LOOKUP), ('w4a4',), (0, 1, 2)
            ),
            *cells(
                ('detr',),
                (
                    'adalog',
                    *(f'adalog_{name}_8' for name in SPARED),
                    'gptq_attention',
                    LOOKUP,
                ),
                ('w6a6',),
            ),
        ],
        # IGQ-ViT: how many groups, and what chooses them
        'igq': [
            *cells(
                DETECTORS,
                (
                    *(f'igq_{n}' for n in GROUPS),
                    'igq_allocate',
                    'group_static',
                    'igq_channel',
                ),
                ('w4a4',),
            ),
            *cells(
                ('mask-rcnn_swin', 'detr'),
                (
                    *(f'igq_{n}_means' for n in GROUPS[1:3]),
                    *(f'igq_8_clipped_{share}' for share in CLIPPED),
                ),
                ('w4a4',),
            ),
            *cells(('detr',), ('igq_8', 'igq_allocate'), ('w4a4',), (1, 2)),
            # by distance, more bits do not help
            *cells(('mask-rcnn_swin', 'detr'), ('igq_8_means',), ('w8a8',)),
        ],
    }
