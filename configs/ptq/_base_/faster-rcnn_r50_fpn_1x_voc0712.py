# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = [
    'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
    './reg_ptq.py',
]
