# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""IGQ-ViT with a number of grids for each layer (Moon et al., CVPR 2024).

All layers together cost as many bit operations as with 8 grids each; the
numbers are those that move the detector's outputs least.
"""

_base_ = './igq_vit.py'
passes = [*_base_.passes, dict(type='AllocateGroups', groups=8)]
