# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
# Table 3: the local loss alone, uniform weights in the heads too.
_base_ = '../llaq_heads/retinanet_r50_fpn_2x_coco.py'
quant_cfg = dict(
    rules=[
        dict(
            match='@head',
            weight=dict(type='UniformQuantizer', granularity='channel'),
        ),
    ]
)
