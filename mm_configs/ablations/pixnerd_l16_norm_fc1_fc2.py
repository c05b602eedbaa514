# Paper, Fig. 7a: both weights normalised, and no RMSNorm before the last layer. Everything else as PixNerd-L/16.
_base_ = '../pixnerd_l16.py'
model = dict(backbone=dict(head=dict(normalize='fc1_fc2')))
