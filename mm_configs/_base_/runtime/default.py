default_scope = 'pixnerd'
custom_imports = dict(imports=['pixnerd_plugin'])

default_hooks = dict(
    runtime_info=dict(type='ScalarsHook', time_bins=10),
    provenance=dict(type='ProvenanceHook'),
    timer=dict(type='StepTimerHook'),
    logger=dict(type='LoggerHook', interval=100, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    ema=dict(type='EMAHook', decay=0.9999),
    checkpoint=dict(type='AtomicCheckpointHook', interval=10_000, max_keep_ckpts=3, keep_every=100_000),
    sampler_seed=None,  # ResumableSampler never ends, so there are no epochs to seed
)
# For the FLOPs utilisation of a GPU that pixnerd_plugin/models/flops.py does not know, add peak_tflops=312 (its own).
log_processor = dict(type='TrainingLogProcessor', by_epoch=False, window_size=100)
log_level = 'INFO'

# Weights & Biases instead of TensorBoard: docs/training.md.
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='forkserver', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=600),  # seconds to wait for a rank before the others stop
)
model_wrapper_cfg = dict(type='MMDistributedDataParallel', broadcast_buffers=False, gradient_as_bucket_view=True)

# For initial weights, times and noise; the sampler has its own seed for the order of the data.
randomness = dict(seed=0, diff_rank_seed=True)
load_from = None
resume = False
