# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""PD-Quant (Liu et al., 2023): QDrop, guided by the detector's classes.

The difference of the predictions is added to the error of each unit, and
sees the quantized input while the error sees the dropped one. The float part
of the dropped input is first moved towards what the unit's batch norms have
stored (distribution correction, 500 steps for each image). `lambda_c` is the
paper's for ResNet; it has 0.01 for RegNet, 0.005 for MobileNetV2 and 0.001
for MNasNet.
"""

_base_ = './qdrop.py'
pass_args = dict(
    Reconstruct=dict(
        losses=[dict(type='L2Loss'), dict(type='PredictionDifference')],
        separate_global=True,
        distribution_correction=dict(iters=500, lr=1e-3, lambda_c=0.02),
    )
)
