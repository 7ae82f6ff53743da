# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
# What every config of the transformer recipes has. Recipe and bits are said
# where this is inherited.
custom_imports = dict(imports=['mmdet_ptq'], allow_failed_imports=False)
runner_type = 'PTQRunner'
quant_cfg = dict(calibration=dict(num_samples=32))
