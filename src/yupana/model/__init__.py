"""Llama: shapes, the forward pass, generation, and Hugging Face in and out."""
