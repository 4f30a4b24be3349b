"""Parameter transfer learning with fastai and PyTorch: pretrain, transfer, fine-tune, compare"""

__version__ = "0.1.0"
