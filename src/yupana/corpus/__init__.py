"""From text to batches: sources, tokenizers, token shards, and batches as a pure function of the step."""
