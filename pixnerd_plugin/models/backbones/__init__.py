from .pixnerd_dit import PixNerdDiT

__all__ = ['PixNerdDiT']
