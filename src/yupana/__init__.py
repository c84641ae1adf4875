"""yupana pretrains Llama-family models and accounts for every FLOP."""

__version__ = "0.1.0"
