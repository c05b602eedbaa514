# Fine-tuning of PixNerd-XXL/16 on your own captioned pictures without cropping them to squares: docs/data.md.
_base_ = './pixnerd_xxl16_t2i_finetune.py'
image_size = 512
max_aspect = 2.0
# 'grid' is the published rule without its swap of the axes, which square grids do not show.
model = dict(backbone=dict(position_rule='grid'))
train_dataloader = dict(
    batch_sampler=dict(type='BucketBatchSampler', resolution=image_size, max_aspect=max_aspect, multiple=16),
)
sizes = [(384, 672), (512, 512), (672, 384)]
custom_hooks = [dict(type='SampleGridHook', interval=1000, conditions=dict(text=[''] * 4), size=sizes, batch_size=1)]
