# Paper, Fig. 7a: normalise only the first weight of each field block. The rest is PixNerd-L/16.
_base_ = '../pixnerd_l16.py'
model = dict(backbone=dict(head=dict(normalize='fc1')))
