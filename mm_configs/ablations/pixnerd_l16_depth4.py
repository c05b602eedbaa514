# Paper, Fig. 7c: four field blocks (default 2). The rest is PixNerd-L/16.
_base_ = '../pixnerd_l16.py'
model = dict(backbone=dict(head=dict(depth=4)))
