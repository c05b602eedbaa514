# Paper, Fig. 7a: normalise both weights, without an RMSNorm before the last layer. The rest is PixNerd-L/16.
_base_ = '../pixnerd_l16.py'
model = dict(backbone=dict(head=dict(normalize='fc1_fc2')))
