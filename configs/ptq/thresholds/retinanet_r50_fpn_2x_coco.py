# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
# Table 2: both thresholds of the filter, without the learned levels of
# Table 3. All rows are looked at, so that a threshold of 0 filters nothing.
_base_ = '../uniform_heads/retinanet_r50_fpn_2x_coco.py'
quant_cfg = dict(
    bits='w2a4',
    pass_args=dict(
        Reconstruct=dict(
            losses=[
                dict(
                    type='FisherLoss',
                    damping=0.8,
                    of=dict(
                        type='DetectionLoss',
                        theta_c=2e-4,
                        theta_i=0.1,
                        topk_per_level=None,
                    ),
                ),
                dict(
                    type='DetectionLoss',
                    theta_c=2e-4,
                    theta_i=0.1,
                    topk_per_level=None,
                ),
            ]
        )
    ),
)
