# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
# The budget of Reg-PTQ on a GPU, for every config of this folder. The paper
# has 2000 steps for each unit and a batch of 256; a step through the whole
# detector takes a few images only, so that 256 is the number of images.
custom_imports = dict(imports=['mmdet_ptq'], allow_failed_imports=False)
runner_type = 'PTQRunner'
quant_cfg = dict(
    recipe='reg_ptq',
    bits='w4a4',
    pass_args=dict(Reconstruct=dict(iters=2000, batch_size=2)),
    calibration=dict(num_samples=256, cache='8GiB', cache_dtype='float16'),
)
