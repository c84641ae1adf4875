"""How fast accelerators talk to each other, by data sheet: inside a node and between nodes. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from yupana.errors import UserError
from yupana.flops.layout import Layout

REACHED = 0.8
"""Of a link's data-sheet rate, by a large collective: an assumption."""
LATENCY = 20e-6
"""Seconds that a collective takes however small it is: an assumption."""


@dataclass(frozen=True)
class Interconnect:
    """Links of one accelerator, one direction, bytes a second."""

    node: int
    """Accelerators that reach each other at `inside`."""
    inside: float
    across: float
    """To another node, a card."""
    source: str

    def rate(self, layout: Layout, over: str) -> float:
        """Bytes a second at which a rank sends in a ring over one direction of the layout, or over all ranks.

        Where the ring leaves the node, all its members in the node bring their network cards into it.
        """
        size, stride = members(layout, over)
        here = max(1, min(size, self.node // stride))
        return REACHED * (self.inside if here == size else min(self.inside, here * self.across))

    def seconds(self, layout: Layout, over: str, sent: float, count: float) -> float:
        """Of `count` collectives in which a rank sends `sent` bytes altogether."""
        return sent / self.rate(layout, over) + count * LATENCY


def members(layout: Layout, over: str) -> tuple[int, int]:
    """(ranks, distance between neighbours) of a group in one direction of the layout."""
    return {
        "tp": (layout.tp, 1),
        "cp": (layout.cp, layout.tp),
        "shards": (layout.shards, layout.tp),
        "replicate": (layout.replicate, layout.tp * layout.shards),
        "all": (layout.ranks, 1),
    }[over]


# NVLink figures are printed for both directions together, network figures for one.
_HOPPER = Interconnect(8, 450e9, 50e9, "NVIDIA DGX H100/H200 data sheets: NVLink 900 GB/s both ways, 400 Gb/s a GPU")
_AMPERE = Interconnect(8, 300e9, 25e9, "NVIDIA DGX A100 data sheet: NVLink 600 GB/s both ways, 200 Gb/s a GPU")
INTERCONNECTS = {
    "h100-sxm": _HOPPER,
    "h200": _HOPPER,
    "a100-80gb": _AMPERE,
    "a100-40gb": _AMPERE,
    "b200": Interconnect(8, 900e9, 50e9, "NVIDIA DGX B200 data sheet: NVLink 1 800 GB/s both ways, 400 Gb/s a GPU"),
    "gb200": Interconnect(72, 900e9, 50e9, "NVIDIA DGX GB200 data sheet: NVLink 1 800 GB/s both ways, 400 Gb/s a GPU"),
}


def interconnect(
    hardware: str, node: int | None = None, link: float | None = None, network: float | None = None
) -> Interconnect:
    """The links of an accelerator by name, with what is given in its place; `link` and `network` in GB/s one way.

    Raises UserError for an accelerator that is not in the table unless all three are given.
    """
    known = INTERCONNECTS.get(hardware)
    for name, value in (("node", node), ("link", link), ("network", network)):
        if value is not None and not value > 0:
            raise UserError(f"--{name} must be positive, got {value:g}")
    if known is None and None in (node, link, network):
        raise UserError(
            f"no links are known for {hardware} (known: {', '.join(INTERCONNECTS)}): give --node CARDS, --link GB/s and "
            "--network GB/s, one way a card"
        )
    if known is None:
        known = Interconnect(1, 1.0, 1.0, "given")
    given = [n for n, v in (("node", node), ("link", link), ("network", network)) if v is not None]
    return Interconnect(
        node or known.node,
        link * 1e9 if link else known.inside,
        network * 1e9 if network else known.across,
        known.source if not given else f"{known.source}; given: {', '.join(given)}" if len(given) < 3 else "given",
    )
