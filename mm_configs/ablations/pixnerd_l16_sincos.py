# Paper, Fig. 7d: sines and cosines of the coordinates instead of the DCT-like features. The rest is PixNerd-L/16.
_base_ = '../pixnerd_l16.py'
model = dict(backbone=dict(head=dict(coordinates='sincos')))
