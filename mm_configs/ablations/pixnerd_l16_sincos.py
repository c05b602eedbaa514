# Paper, Fig. 7d: sines and cosines of the coordinates, not the DCT-like features. Everything else as PixNerd-L/16.
_base_ = '../pixnerd_l16.py'
model = dict(backbone=dict(head=dict(coordinates='sincos')))
