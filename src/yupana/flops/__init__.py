"""FLOPs: counting them, what the hardware can do, and the utilisation that follows."""
