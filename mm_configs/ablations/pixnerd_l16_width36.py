# Paper, Fig. 7b: a field of width 36 (default 64). The rest is PixNerd-L/16.
_base_ = '../pixnerd_l16.py'
model = dict(backbone=dict(head=dict(width=36)))
