"""Every operation of a Llama's training step, forward and backward, derived by hand: the math, and the oracle.

Each file is one operation. `forward` takes plain tensors and returns one; `backward` takes the gradient of a scalar
loss with respect to that output first, then what `forward` took, and returns the gradient of each input, in order.
No autograd, no state, no speed: what the fast paths of train/ are compared with, in float64. A leading `d` means
the gradient of the loss with respect to what follows: `dx` is ∂loss/∂x, of x's own shape.

The derivations are in docs/math.md.
"""
