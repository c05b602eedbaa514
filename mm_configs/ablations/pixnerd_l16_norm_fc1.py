# Paper, Fig. 7a: only the first weight of each field block normalised. Everything else as PixNerd-L/16.
_base_ = '../pixnerd_l16.py'
model = dict(backbone=dict(head=dict(normalize='fc1')))
