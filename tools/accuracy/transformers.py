# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the suites on transformers consist of."""

from typing import Any

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


def _igq(**act: Any) -> dict:
    """``igq_vit`` with other inputs of linear layers."""
    return dict(recipe='igq_vit', rules=[dict(match='@linear', act=act)])


def _weights(percentile: float) -> dict:
    """``igq_vit`` at another share of the weights inside their range."""
    observer = dict(type='PercentileObserver', percentile=percentile)
    return dict(
        recipe='igq_vit',
        pass_args=dict(SetRanges=dict(weight_observer=observer)),
    )


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
    # what the paper gives for 6 bits, and means for 8
    'igq_vit_w6': _weights(0.99999),
    'igq_vit_w8': _weights(1.0),
    **{
        f'igq_{n}': _igq(type='InstanceGroupQuantizer', num_groups=n)
        for n in GROUPS
    },
    'igq_channel': _igq(type='UniformQuantizer', granularity='channel'),
}


def suites(cells: Any) -> dict[str, list[tuple]]:
    """Cells of the suites on transformers.

    Args:
        cells (Callable): Makes cells of detectors, methods and widths.
    """
    wide = [m for m in (*CALIBRATED, *LEARNED) if m != 'igq_vit']
    swin = DETECTORS[:2]
    return {
        # AdaLog, Table 5: every method at every width
        'adalog_a': [
            *cells(DETECTORS, CALIBRATED, ('w4a4',)),
            *cells(DETECTORS, LEARNED, ('w4a4',)),
            *cells(DETECTORS, (*wide, 'igq_vit_w6'), ('w6a6',)),
            *cells(DETECTORS, (*wide, 'igq_vit_w8'), ('w8a8',)),
        ],
        # what a GELU gives
        'adalog_b': cells(swin, [f'gelu_{n}' for n in GELU], ('w4a4',)),
        # what a softmax gives, at 4, 3 and 2 bits
        'adalog_c': cells(
            DETECTORS,
            [f'softmax_{n}' for n in SOFTMAX],
            ('w4a4', 'w4a4s3', 'w4a4s2'),
        ),
        # IGQ-ViT: how many groups, and what chooses them
        'igq': cells(
            DETECTORS,
            (
                *(f'igq_{n}' for n in GROUPS),
                'igq_allocate',
                'group_static',
                'igq_channel',
            ),
            ('w4a4',),
        ),
    }
