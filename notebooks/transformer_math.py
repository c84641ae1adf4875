# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The mathematics of a Llama, by hand
#
# One forward and one backward pass of a small Llama over a real sentence, operation by operation, with nothing but
# the hand-derived formulas of [`docs/math.md`](../docs/math.md). Every intermediate is compared with torch's own
# operations and its autograd. Then the same model learns from the hand-written gradients alone, and its loss curve is
# laid on autograd's. Time: under a minute on two CPU cores.
#
# The first cell installs yupana where it is missing.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("yupana") is None:  # once, from the clone that this notebook lies in
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "..[all]", "-c", "../constraints.txt"], check=True)

from yupana import notebook

notebook.in_order()  # a cell that is run before those above it says so

# %%
import re

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import PowerNorm

from yupana.anatomy import adamw, attention, block, clip, cross_entropy, embedding, linear, llama, rmsnorm, rope
from yupana.anatomy.checks import relative_error
from yupana.model.llama import Llama
from yupana.model.shapes import ModelShape

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # Okabe & Ito
plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
SHADE = PowerNorm(0.5, 0, 1)  # shade by the square root, so that small weights show too
torch.set_default_dtype(torch.float64)  # so that agreement to 1e-10 means: the same formulas

# %% [markdown]
# ## A text and a model
#
# Lincoln's address at Gettysburg, 1863, a word a token. The sentence to walk through is its first. Words that come
# twice ("that", "a", "we" …) will matter: their gradients meet in one row of the embedding.

# %%
ADDRESS = """
Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, and
dedicated to the proposition that all men are created equal.
Now we are engaged in a great civil war, testing whether that nation, or any nation so conceived and so dedicated, can
long endure. We are met on a great battle-field of that war. We have come to dedicate a portion of that field, as a
final resting place for those who here gave their lives that that nation might live. It is altogether fitting and
proper that we should do this.
But, in a larger sense, we can not dedicate -- we can not consecrate -- we can not hallow -- this ground. The brave
men, living and dead, who struggled here, have consecrated it, far above our poor power to add or detract. The world
will little note, nor long remember what we say here, but it can never forget what they did here. It is for us the
living, rather, to be dedicated here to the unfinished work which they who fought here have thus far so nobly
advanced. It is rather for us to be here dedicated to the great task remaining before us -- that from these honored
dead we take increased devotion to that cause for which they gave the last full measure of devotion -- that we here
highly resolve that these dead shall not have died in vain -- that this nation, under God, shall have a new birth of
freedom -- and that government of the people, by the people, for the people, shall not perish from the earth.
"""
words = re.findall(r"[a-z]+", ADDRESS.lower())
vocabulary = sorted(set(words))
ids = torch.tensor([vocabulary.index(word) for word in words])
SENTENCE = 30  # words of the first sentence
tokens, targets = ids[:SENTENCE][None], ids[1 : SENTENCE + 1][None]  # [batch = 1, seq = 30]
said = [vocabulary[i] for i in tokens[0]]
print(f"{len(words)} words, {len(vocabulary)} different ones")
print(" ".join(said))

# %% [markdown]
# A Llama with all its parts: two blocks, four query heads over two key/value heads, rotary embedding, SwiGLU, and the
# embedding shared with the output head.

# %%
shape = ModelShape(
    n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, vocab_size=len(vocabulary), rope_theta=100.0
)
model = Llama(shape)
model.initialise(seed=0)
weights = {name: p.detach().clone() for name, p in model.named_parameters()}
for name, weight in weights.items():
    print(f"{name:38} {list(weight.shape)}")
print(f"{shape.parameters:,} parameters; before any learning the loss should be near log {len(vocabulary)} = "
      f"{torch.tensor(len(vocabulary)).log():.3f}")

# %% [markdown]
# ## Forward, operation by operation
#
# First the embedding and the first block, each line one operation of `yupana.anatomy`.

# %%
rotation = rope.table(SENTENCE, rope.frequencies(shape.head_dim, shape.rope_theta, shape.rope_scaling))
seen = attention.mask(SENTENCE)
first = {name.removeprefix("layers.0."): w for name, w in weights.items() if name.startswith("layers.0.")}

x0 = embedding.forward(weights["embedding.weight"], tokens)  # [1, 30, 32]: a row a word
a = rmsnorm.forward(x0, first["attention_norm.weight"])
q, k, v = linear.forward(a, first["attention.wqkv.weight"]).split([32, 16, 16], dim=-1)
q, k, v = (block.into_heads(part, shape.head_dim) for part in (q, k, v))  # [1, heads, 30, 8]
q, k = rope.forward(q, rotation), rope.forward(k, rotation)
o = block.out_of_heads(attention.forward(q, k, v, seen))
h = x0 + linear.forward(o, first["attention.wo.weight"])
b = rmsnorm.forward(h, first["feed_forward_norm.weight"])
gate, up = linear.forward(b, first["feed_forward.w_gate_up.weight"]).chunk(2, dim=-1)
x1 = h + linear.forward(gate * torch.sigmoid(gate) * up, first["feed_forward.w_down.weight"])

# %% [markdown]
# The same through torch's own operations, kept for autograd. The rotary embedding is written another way here: pairs
# of components as complex numbers, multiplied by $e^{i \varphi}$.

# %%
def turned(x):
    frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = torch.outer(torch.arange(x.shape[2]).double(), frequencies)
    numbers = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([numbers.real, numbers.imag], dim=-1)


def by_torch(weights, tokens):
    """Logits, and the residual stream on the way: [embedding, after block 0, after block 1]."""
    batch, seq = tokens.shape
    stream = [F.embedding(tokens, weights["embedding.weight"])]
    for layer in range(shape.n_layers):
        own = {n.removeprefix(f"layers.{layer}."): w for n, w in weights.items() if n.startswith(f"layers.{layer}.")}
        x = stream[-1]
        qkv = F.linear(F.rms_norm(x, (32,), own["attention_norm.weight"], 1e-5), own["attention.wqkv.weight"])
        q, k, v = (p.view(batch, seq, -1, 8).transpose(1, 2) for p in qkv.split([32, 16, 16], dim=-1))
        out = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True, enable_gqa=True)
        x = x + F.linear(out.transpose(1, 2).reshape(batch, seq, -1), own["attention.wo.weight"])
        normed = F.rms_norm(x, (32,), own["feed_forward_norm.weight"], 1e-5)
        gate, up = F.linear(normed, own["feed_forward.w_gate_up.weight"]).chunk(2, dim=-1)
        stream.append(x + F.linear(F.silu(gate) * up, own["feed_forward.w_down.weight"]))
    hidden = F.rms_norm(stream[-1], (32,), weights["norm.weight"], 1e-5)
    return F.linear(hidden, weights["embedding.weight"]), stream


leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
torch_logits, torch_stream = by_torch(leaves, tokens)
for x in torch_stream:
    x.retain_grad()
print("embedding     ", f"{relative_error(x0, torch_stream[0].detach()):.1e}")
print("after block 0 ", f"{relative_error(x1, torch_stream[1].detach()):.1e}")

# %% [markdown]
# `llama.forward` does the same for every block and keeps what the backward pass asks for.

# %%
logits, kept = llama.forward(weights, tokens, shape)
loss = cross_entropy.forward(logits[0], targets[0])
torch_loss = F.cross_entropy(torch_logits[0], targets[0])
print("logits        ", f"{relative_error(logits, torch_logits.detach()):.1e}")
print(f"loss           {loss:.6f} by hand, {torch_loss:.6f} by torch")

# %% [markdown]
# ### What flows: the residual stream
#
# Each column is a word; each row the root mean square of what is added to the stream there. The norm in front of
# every branch makes a branch's size independent of the stream's; that is why depth adds up slowly.

# %%
def rms(x):
    return x[0].square().mean(-1).sqrt()


def words_below(axes):
    axes.set_xticks(range(SENTENCE), said, rotation=90)


def stages(kept):
    """Name and value of the stream and of each branch, in order."""
    found = [("embedding", kept.blocks[0].x)]
    for index, one in enumerate(kept.blocks):
        after = kept.blocks[index + 1].x if index + 1 < len(kept.blocks) else kept.x
        found += [(f"block {index}: attention adds", one.h - one.x), (f"block {index}: feed-forward adds", after - one.h)]
    return [*found, ("stream at the end", kept.x)]


def draw_stream(kept, title):
    figure, axes = plt.subplots(figsize=(10, 2.9), layout="constrained")
    names, values = zip(*stages(kept), strict=True)
    image = axes.imshow(torch.stack([rms(value) for value in values]), cmap="viridis", aspect="auto")
    axes.set_yticks(range(len(names)), names)
    words_below(axes)
    figure.colorbar(image, label="root mean square")
    axes.set_title(title, loc="left")
    plt.show()


draw_stream(kept, "The residual stream before any learning")

# %% [markdown]
# ### Who looks at whom: attention
#
# Row: the word that looks; column: the word that is looked at; black is all of a row's weight (shades go
# by the square root). Before any learning
# the scores are near 0, so each word spreads its attention almost evenly over those up to itself: the first row has one
# choice, the last has thirty.

# %%
def draw_attention(kept, title):
    figure, panels = plt.subplots(shape.n_layers, shape.n_heads, figsize=(10, 5.6), layout="constrained")
    for layer, row in enumerate(panels):
        one = kept.blocks[layer]
        weights = attention.probabilities(one.q, one.k, kept.seen).flatten(1, 2)[0]  # [n_heads, seq, seq]
        for head, axes in enumerate(row):
            axes.imshow(weights[head], cmap="Greys", norm=SHADE)
            axes.set_title(f"block {layer}, head {head}", loc="left", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            if head == 0:
                axes.set_yticks(range(0, SENTENCE, 3), said[::3], fontsize=7)
            if layer == shape.n_layers - 1:
                axes.set_xticks(range(0, SENTENCE, 3), said[::3], rotation=90, fontsize=7)
    figure.suptitle(title, x=0.01, ha="left")
    plt.show()


draw_attention(kept, "Attention before any learning")

# %% [markdown]
# ## Backward, operation by operation
#
# The loss is a mean over 30 words, so its gradient with respect to the logits is (probabilities − one-hot) / 30. From
# there the chain rule walks back through the very same list. `dx` is the gradient with respect to the residual
# stream; after each block it is compared with what autograd finds at the same place.

# %%
torch_loss.backward()

dlogits = cross_entropy.backward(1.0, logits[0], targets[0])[None]
dhidden, dhead = linear.backward(dlogits, kept.hidden, weights["embedding.weight"])
dx, dnorm = rmsnorm.backward(dhidden, kept.x, weights["norm.weight"])
at_stream = [dx]
print(f"{'at the end':22}{relative_error(dx, torch_stream[2].grad):.1e}")
gradients = {"norm.weight": dnorm}
for layer in reversed(range(shape.n_layers)):
    own = {n.removeprefix(f"layers.{layer}."): w for n, w in weights.items() if n.startswith(f"layers.{layer}.")}
    dx, of_block = block.backward(dx, kept.blocks[layer], own, rotation, seen)
    gradients |= {f"layers.{layer}.{name}": gradient for name, gradient in of_block.items()}
    at_stream.insert(0, dx)
    print(f"{f'in front of block {layer}':22}{relative_error(dx, torch_stream[layer].grad):.1e}")
dlookup = embedding.backward(dx, weights["embedding.weight"], tokens)
gradients["embedding.weight"] = dlookup + dhead  # one matrix, two uses: the gradients add

# %% [markdown]
# Every parameter's gradient, against autograd's:

# %%
for name in weights:
    error = relative_error(gradients[name], leaves[name].grad)
    print(f"{name:38} norm of the gradient {gradients[name].norm():.4f}   error {error:.1e}")
assert all(relative_error(gradients[name], leaves[name].grad) < 1e-10 for name in weights)

# %% [markdown]
# ### One matrix, two gradients
#
# The embedding is also the output head. Its look-up part reaches only words that are in the sentence; its head part
# reaches every word, because every word that was not the answer took some probability. "Four" is the
# one word of the sentence that is never an answer in it: its head part is as small as that of words that do not occur.

# %%
counts = torch.bincount(tokens[0], minlength=len(vocabulary))
inside = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
outside = torch.tensor([i for i in range(len(vocabulary)) if counts[i] == 0])[:12]
shown = torch.cat([inside, outside])
figure, axes = plt.subplots(figsize=(10, 3.3), layout="constrained")
place = torch.arange(len(shown))
axes.bar(place - 0.2, dlookup[shown].norm(dim=1), 0.4, color=BLUE)
axes.bar(place + 0.2, dhead[shown].norm(dim=1), 0.4, color=VERMILION)
axes.axvline(len(inside) - 0.5, color=GREY, linewidth=1)
axes.text(len(inside) - 0.2, axes.get_ylim()[1] * 0.95, "not in the sentence", color=GREY, va="top")
axes.text(5, axes.get_ylim()[1] * 0.97, "through the look-up", color=BLUE, fontweight="bold", va="top")
axes.text(5, axes.get_ylim()[1] * 0.87, "through the head", color=VERMILION, fontweight="bold", va="top")
axes.set_xticks(place, [vocabulary[i] + (f" ×{counts[i]}" if counts[i] > 1 else "") for i in shown], rotation=90)
axes.set_ylabel("norm of a word's gradient")
axes.set_title("The tied embedding's gradient, word by word", loc="left")
plt.show()

# %% [markdown]
# ### Whose loss reaches whose embedding
#
# Take the loss of one word alone, walk back, and look at how much gradient arrives at each word's embedding. Row: the
# word after which the next is predicted; column: the embedding that receives. Nothing arrives above the diagonal: a
# word cannot learn from a prediction made before it was read. The diagonal itself is the residual stream's straight
# way down; what lies left of it came through attention.

# %%
def reach(weights):
    """|∂ loss of word t / ∂ embedding of word s|, [t, s]."""
    logits, kept = llama.forward(weights, tokens, shape)
    rows = []
    for t in range(SENTENCE):
        only = torch.full_like(targets[0], cross_entropy.IGNORED)
        only[t] = targets[0, t]
        dlogits = cross_entropy.backward(1.0, logits[0], only)[None]
        dhidden, _ = linear.backward(dlogits, kept.hidden, weights["embedding.weight"])
        dx, _ = rmsnorm.backward(dhidden, kept.x, weights["norm.weight"])
        for layer in reversed(range(shape.n_layers)):
            prefix = f"layers.{layer}."
            own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
            dx, _ = block.backward(dx, kept.blocks[layer], own, rotation, seen)
        rows.append(dx[0].norm(dim=-1))
    return torch.stack(rows)


before = reach(weights)
assert not before.triu(1).any()


def draw_reach(values, axes, title):
    share = values / values.sum(1, keepdim=True)  # of a row's gradient
    image = axes.imshow(share, cmap="Greys", norm=SHADE)
    axes.set_xticks(range(SENTENCE), said, rotation=90, fontsize=7)
    axes.set_yticks(range(SENTENCE), said, fontsize=7)
    axes.set_xlabel("embedding that receives gradient")
    axes.set_title(title, loc="left")
    return image


figure, axes = plt.subplots(figsize=(6.2, 5.4), layout="constrained")
figure.colorbar(draw_reach(before, axes, "Before any learning"), label="share of the word's gradient", shrink=0.8)
axes.set_ylabel("word after which the loss is taken")
plt.show()

# %% [markdown]
# ## Learning from hand-written gradients alone
#
# Three hundred steps of clipping and AdamW on random windows of the whole address. On the left hand nothing but
# `yupana.anatomy`; on the right torch's autograd, `clip_grad_norm_` and `torch.optim.AdamW`, from the same weights on
# the same windows. If one formula were wrong, the curves would part.

# %%
STEPS, WINDOWS, LENGTH, LR, CLIP = 300, 8, 32, 3e-3, 1.0
generator = torch.Generator().manual_seed(1)
starts = torch.randint(0, len(ids) - LENGTH, (STEPS, WINDOWS), generator=generator)


def batch(step):
    index = starts[step][:, None] + torch.arange(LENGTH)
    return ids[index], ids[index + 1]


def decay(weight):
    return 0.1 if weight.ndim >= 2 else 0.0  # on matrices only, not on norms


hand = {name: w.clone() for name, w in weights.items()}
moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in hand.items()}
by_hand = []
for step in range(STEPS):
    loss, found = llama.loss_and_gradients(hand, *batch(step), shape)
    found, _ = clip.forward(found, CLIP)
    for name, gradient in found.items():
        hand[name], *both = adamw.forward(
            hand[name], gradient, *moments[name], step + 1, LR, (0.9, 0.95), 1e-8, decay(gradient)
        )
        moments[name] = tuple(both)
    by_hand.append(loss.item())

# %%
theirs = {name: w.clone().requires_grad_() for name, w in weights.items()}
groups = [
    {"params": [w for w in theirs.values() if w.ndim >= 2], "weight_decay": 0.1},
    {"params": [w for w in theirs.values() if w.ndim < 2], "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
by_autograd = []
for step in range(STEPS):
    inputs, wanted = batch(step)
    loss = F.cross_entropy(by_torch(theirs, inputs)[0].flatten(0, 1), wanted.flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(theirs.values(), CLIP)
    optimizer.step()
    by_autograd.append(loss.item())

# %%
apart = (torch.tensor(by_hand) - torch.tensor(by_autograd)).abs()
figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, height_ratios=[3, 1.3], layout="constrained")
above.plot(by_autograd, color=VERMILION, linewidth=5, alpha=0.45)
above.plot(by_hand, color=BLUE, linewidth=1.2)
above.annotate("autograd (wide)", (25, by_autograd[25]), xytext=(24, 26), textcoords="offset points", color=VERMILION,
               fontweight="bold")
above.annotate("by hand (thin)", (25, by_hand[25]), xytext=(24, 10), textcoords="offset points", color=BLUE,
               fontweight="bold")
above.set_ylabel("loss (nats a word)")
above.set_ylim(0)
below.semilogy(apart.clamp_min(1e-17), color=GREEN, linewidth=1)
below.set_ylabel("difference (nats)")
below.set_xlabel("step")
plt.show()
print(f"loss {by_hand[0]:.3f} → {by_hand[-1]:.3f}; the two curves are never more than {apart.max():.1e} apart")
assert apart.max() < 1e-6

# %% [markdown]
# What is left between them is the rounding of float64.
#
# ## The same sentence after learning
#
# Now the heads have found something to look at.

# %%
_, learned = llama.forward(hand, tokens, shape)
draw_attention(learned, "Attention after 300 steps")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 5.6), layout="constrained")
draw_reach(before, left, "Before any learning")
image = draw_reach(reach(hand), right, "After 300 steps")
left.set_ylabel("word after which the loss is taken")
figure.colorbar(image, ax=(left, right), label="share of the word's gradient", shrink=0.7)
plt.show()

# %% [markdown]
# And it has learned the address: the likeliest word after each word of the first sentence.

# %%
guesses = llama.forward(hand, tokens, shape)[0][0].argmax(-1)
print(f"{int((guesses == targets[0]).sum())} of {SENTENCE} next words right")
print(" ".join(vocabulary[i] for i in guesses))
