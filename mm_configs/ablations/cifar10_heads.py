# CIFAR-10 for tools/analysis_tools/study_heads.py: more and shorter steps than the other small studies take.
_base_ = './cifar10_small.py'
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
