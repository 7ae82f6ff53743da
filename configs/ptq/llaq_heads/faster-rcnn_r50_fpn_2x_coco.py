# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
# Table 3: the local loss alone, learned logarithmic levels in the heads.
_base_ = '../_base_/faster-rcnn_r50_fpn_2x_coco.py'
quant_cfg = dict(
    pass_args=dict(
        Reconstruct=dict(losses=[dict(type='FisherLoss', damping=0.8)])
    )
)
