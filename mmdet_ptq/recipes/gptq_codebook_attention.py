# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""``gptq_codebook`` with attention that is easier to quantize.

As ``gptq_attention``; and the channels of each head are mixed so that what
quantization does to them is even. For DETR and its relatives at 2 to 4 bits.
"""

_base_ = './gptq_codebook.py'
mix_heads = True
rules = [
    *_base_.rules[:3],
    dict(
        match=['@query', '@key'],
        act=dict(
            type='InstanceGroupQuantizer', granularity='row', num_groups=16
        ),
    ),
    *_base_.rules[3:],
]
passes = [
    *_base_.passes[:1],
    dict(type='SplitPositions'),
    dict(type='QuantizeNumerator'),
    *_base_.passes[1:],
]
