# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the suites of ``benchmark_accuracy.py`` consist of."""

import copy
from pathlib import Path

from mmdet_ptq.quant_cfg import load_recipe
from tools.accuracy import allocation, transformers

ROOT = Path(__file__).resolve().parents[2]
DETECTORS = ('retinanet', 'yolof', 'faster-rcnn', 'mask-rcnn_swin', 'detr')
BITS = ('w2a4', 'w3a3', 'w4a4', 'w4a8')
METHODS = (
    'uniform',
    'adaround',
    'adaquant',
    'brecq',
    'qdrop',
    'pd_quant',
    'subsetq',
    'reg_ptq',
)


HEADS = ['@rpn', '@head', '@mask']
UNIFORM_HEADS = [
    dict(
        match=HEADS,
        weight=dict(type='UniformQuantizer', granularity='channel'),
    ),
    # the rule before has taken in the prediction layers
    dict(match='@prediction', skip=True),
]
FLOAT_HEADS = [dict(match=HEADS, skip=True)]
FISHER = dict(type='FisherLoss', damping=0.8)


def _filtered(theta_c: float, theta_i: float, **fisher: float) -> dict:
    """Reg-PTQ's losses with these filters, weights of heads uniform."""
    loss = dict(
        type='DetectionLoss',
        theta_c=theta_c,
        theta_i=theta_i,
        topk_per_level=None,  # a threshold of 0 filters nothing
    )
    return dict(
        recipe='reg_ptq',
        rules=UNIFORM_HEADS,
        pass_args=dict(
            Reconstruct=dict(losses=[dict(FISHER, of=loss, **fisher), loss])
        ),
    )


# the Fisher weights come from the same rows as those of the filters below
LOCAL = dict(
    recipe='reg_ptq',
    pass_args=dict(
        Reconstruct=dict(
            losses=[
                dict(
                    FISHER, of=dict(type='DetectionLoss', topk_per_level=None)
                )
            ]
        )
    ),
)
THETA_C, THETA_I = (0.0, 2e-4, 1e-2), (0.0, 0.1)
FILTERS = {
    f'c={c:g}_i={i:g}': _filtered(c, i) for i in THETA_I for c in THETA_C
}
YOLOX = 'yolox-nano'
YOLOX_METHODS = (
    'minmax',
    'uniform',
    'q_yolo',
    'adaround',
    'adaquant',
    'brecq',
    'qdrop',
    'pd_quant',
    'reg_ptq',
)
_UNIFORM = dict(type='UniformQuantizer', bits=8)
EIGHT = dict(
    a=dict(act=_UNIFORM), w=dict(weight=dict(_UNIFORM, granularity='channel'))
)
# what a method's name means where it is not a recipe as it is
VARIANTS = {
    'local': dict(LOCAL, rules=UNIFORM_HEADS),
    **FILTERS,
    # the paper's filters, so that only the damping differs
    'undamped': _filtered(2e-4, 0.1, damping=0.0),
    'uniform_heads': dict(LOCAL, rules=UNIFORM_HEADS),
    'llaq_heads': LOCAL,
    'float_heads': dict(recipe='reg_ptq', rules=FLOAT_HEADS),
    'reg_ptq_uniform_heads': dict(recipe='reg_ptq', rules=UNIFORM_HEADS),
    # one part of the detector spared
    **{
        f'{name}_float': dict(
            recipe='uniform', rules=[dict(match=match, skip=True)]
        )
        for name, match in {
            'backbone': '@backbone',
            'neck': '@neck',
            'heads': HEADS,
            'attention': '@attention',
            'matmul': '@matmul',
        }.items()
    },
    'backbone_a8': dict(
        recipe='uniform', rules=[dict(match='@backbone', act=dict(bits=8))]
    ),
    # compensated rounding, the inputs or the weights of one part in 8 bits
    **{
        f'{recipe}_{part}_{what}8': dict(
            recipe=recipe,
            rules=[dict(match=match, **EIGHT[what])],
        )
        for recipe in ('gptq', 'gptq_codebook')
        for part, match in {
            'backbone': '@backbone',
            'neck': '@neck',
            'heads': HEADS,
            'attention': '@attention',
        }.items()
        for what in EIGHT
    },
    # attention as tools leave it that replace Conv2d and Linear modules:
    # torch's MultiheadAttention uses its weights without calling a Linear
    **{
        f'{recipe}_attention_float': dict(
            recipe=recipe, rules=[dict(match='@attention', skip=True)]
        )
        for recipe in ('qdrop', 'reg_ptq')
    },
    **transformers.VARIANTS,
    **allocation.VARIANTS,
}


def _cells(detectors, methods, bits, seeds=(0,)) -> list[tuple]:
    """The product, methods innermost so that a row fills up first."""
    return [
        (d, m, b, s)
        for s in seeds
        for b in bits
        for d in detectors
        for m in methods
    ]


def _spared(*parts: str, recipe: str = 'gptq') -> list[str]:
    """A recipe, and with inputs or weights of one part in 8 bits."""
    return [
        recipe,
        *(
            f'{recipe}_{part}_{what}8'
            for part in (*parts, 'heads')
            for what in 'aw'
        ),
    ]


TWO = ('retinanet', 'faster-rcnn')
SIX = (*DETECTORS, 'cascade-mask-rcnn_swin')
LEARNED = ('retinanet', 'faster-rcnn', 'detr')
SEEDS = (0, 1, 2)
SUITES = {
    # Reg-PTQ, Table 1: every method at every width
    'table1': _cells(DETECTORS, METHODS, BITS),
    # Table 2: what the global loss, its two filters and damping do
    'table2': _cells(TWO, ('local', 'undamped', *FILTERS), BITS[:1], SEEDS),
    # Table 3: levels of the heads' weights, without the global loss
    'table3': _cells(TWO, ('uniform_heads', 'llaq_heads'), BITS[:3:2], SEEDS),
    # Table S1: heads left float against everything quantized
    's1': _cells(TWO, ('float_heads', 'reg_ptq'), BITS[2:3], SEEDS),
    # Table S3: DETR, with attention quantized and without; and, where the
    # activations have 8 bits, whether its heads need logarithmic levels
    's3': [
        *_cells(
            ('detr',),
            (
                'uniform',
                'qdrop',
                'reg_ptq',
                'attention_float',
                'qdrop_attention_float',
                'reg_ptq_attention_float',
            ),
            BITS[:3],
        ),
        *_cells(
            ('detr',),
            ('qdrop', 'reg_ptq', 'reg_ptq_uniform_heads'),
            BITS[3:],
        ),
    ],
    # whether the heads of Mask R-CNN with Swin need logarithmic levels
    'swin_heads': _cells(
        DETECTORS[3:4],
        ('uniform', 'reg_ptq', 'reg_ptq_uniform_heads'),
        BITS[3:],
    ),
    # where 4 bits hurt: plain rounding with one part spared
    'parts': [
        *_cells(
            DETECTORS,
            (
                'uniform',
                'backbone_float',
                'backbone_a8',
                'neck_float',
                'heads_float',
            ),
            BITS[2:3],
        ),
        *_cells(DETECTORS[3:], ('attention_float', 'matmul_float'), BITS[2:3]),
    ],
    # rounding that makes up for its errors, against learned rounding, and
    # learned rounding that starts from it; what is asked first comes first
    'compensated': [
        *_cells((*SIX, YOLOX), ('gptq', 'qdrop'), BITS[3:]),
        *_cells(SIX, ('gptq',), BITS[2::-1]),
        *_cells((YOLOX,), ('gptq',), ('w4a4', 'w6a6')),
        *_cells(('detr',), ('gptq_attention',), BITS[:0:-1]),
        *_cells(('detr',), ('gptq_codebook_attention',), BITS[2::-1]),
        *_cells(SIX, ('gptq_codebook', 'gptq_codebook_recon'), BITS[2::-1]),
        *_cells((YOLOX,), ('gptq_codebook',), ('w4a4', 'w6a6')),
        *_cells(LEARNED, ('gptq_recon',), ('w3a3', 'w4a4')),
        *_cells((*SIX, YOLOX), ('uniform',), BITS[:1:-1]),
        *_cells((YOLOX,), ('uniform',), ('w6a6',)),
        *_cells(SIX, ('uniform',), BITS[1::-1]),
        *_cells((YOLOX,), ('gptq_recon',), ('w4a4',)),
    ],
    # what holds the loss that compensated rounding leaves
    'holds': [
        *_cells(
            (YOLOX,),
            _spared('backbone', 'neck', recipe='gptq_codebook'),
            ('w4a4',),
        ),
        *_cells(('detr',), _spared('attention', 'backbone'), ('w4a4',)),
        *_cells(('retinanet',), _spared('backbone'), ('w3a3',)),
    ],
    # a trained detector of depthwise convolutions on photographs
    'yolox': [
        *_cells((YOLOX,), YOLOX_METHODS, ('w8a8', 'w6a6', *BITS[:1:-1])),
        # whether 4 bits hurt its weights or its activations
        *_cells((YOLOX,), ('uniform', 'qdrop'), ('w8a4',)),
    ],
    **transformers.suites(_cells),
    **allocation.suites(_cells),
}
BUDGETS = {
    # a CPU has 200 steps a unit where a GPU has 2000, looks at the
    # detector's outputs for one image of two, and corrects inputs in 20
    'cpu': dict(iters=200, images=32, global_every=2, correction=20),
    # do results change if a unit has four times the steps?
    'long': dict(iters=800, images=32, global_every=2, correction=80),
    'gpu': dict(iters=2000, images=64, global_every=1, correction=500),
}


def quant_cfg(method: str, bits: str, seed: int, budget: dict) -> dict:
    """The ``quant_cfg`` of one cell."""
    cfg = copy.deepcopy(VARIANTS.get(method) or dict(recipe=method))
    cfg.update(
        bits=bits,
        calibration=dict(num_samples=budget['images'], seed=seed),
    )
    args = {}
    for one in load_recipe(cfg['recipe'])['passes']:
        if one['type'] == 'Reconstruct':
            args['iters'] = budget['iters']
            kinds = {loss['type'] for loss in one['losses']}
            if kinds & {'DetectionLoss', 'PredictionDifference'}:
                args['global_every'] = budget['global_every']
            if 'distribution_correction' in one:
                args['distribution_correction'] = dict(
                    iters=budget['correction']
                )
    if args:
        cfg.setdefault('pass_args', {}).setdefault('Reconstruct', {})
        cfg['pass_args']['Reconstruct'].update(args)
    return cfg


def files_of(detector: str) -> dict[str, Path]:
    """Config, checkpoint and annotations of a detector."""
    if detector == YOLOX:
        return dict(
            config=ROOT / 'configs/coco_mini/yolox_nano_coco-mini.py',
            checkpoint=ROOT / 'data/yolox_nano_coco_mmdet.pth',
            train=ROOT / 'data/coco_mini/instances_train.json',
            val=ROOT / 'data/coco_mini/instances_val.json',
        )
    return dict(
        config=ROOT / f'configs/digits/{detector}_digits.py',
        checkpoint=ROOT / f'demo/checkpoints/{detector}_digits.pth',
        train=ROOT / 'data/digits/train.json',
        val=ROOT / 'data/digits/val.json',
    )
