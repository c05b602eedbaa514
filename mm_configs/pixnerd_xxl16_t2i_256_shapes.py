# PixNerd-XXL/16, text to image at the area of 256x256, from 352x176 to 176x352: docs/data.md. 16 GPUs x 96.
_base_ = './pixnerd_xxl16_t2i_256.py'
image_size = 256
max_aspect = 2.0
# 'grid' is the published rule without its swap of the axes, which square grids do not show.
model = dict(backbone=dict(position_rule='grid'))
train_dataloader = dict(
    batch_sampler=dict(type='BucketBatchSampler', resolution=image_size, max_aspect=max_aspect, multiple=16),
)
prompts = ['a photo of a cat', 'an oil painting of a lighthouse in a storm']
sizes = [(192, 336), (256, 256), (336, 192)]
custom_hooks = [dict(type='SampleGridHook', interval=10_000, conditions=dict(text=prompts * 4), size=sizes)]
