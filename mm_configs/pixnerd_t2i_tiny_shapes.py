# pixnerd_t2i_tiny.py on pictures of several shapes of about 24x24 pixels, wide and tall ones whole: docs/data.md.
_base_ = './pixnerd_t2i_tiny.py'
image_size = 24
max_aspect = 2.0
patch_size = 4
model = dict(backbone=dict(patch_size=patch_size, position_rule='grid'))
train_dataloader = dict(
    batch_sampler=dict(type='BucketBatchSampler', resolution=image_size, max_aspect=max_aspect, multiple=patch_size),
)
prompts = ['a photo of a ship', 'a photo of a frog']
sizes = [(16, 32), (24, 24), (32, 16)]
custom_hooks = [dict(type='SampleGridHook', interval=500, conditions=dict(text=prompts * 4), size=sizes, columns=2)]
