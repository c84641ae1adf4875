"""Dense data-sheet peaks of known accelerators. Imports nothing heavy: plans are made for machines not at hand.

Dense means without structured sparsity: vendors print the sparse figure, twice as large, first. With fp32
accumulation, since that is how training multiplies: GeForce cards reach twice as much with fp16 accumulation. A
figure that the vendor does not publish is None; nothing here is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from yupana.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Accelerator:
    """One row of the table."""

    name: str
    """The vendor's, in lower case."""
    device_names: tuple[str, ...]
    """What torch.cuda.get_device_name() says."""
    bf16: float
    """Dense peak of bf16 matrix products, FLOP/s."""
    tf32: float | None
    """Of fp32 inputs rounded to TF32."""
    fp8: float | None
    """Of 8-bit floats."""
    fp32: float
    """Of fp32 without tensor cores."""
    memory_bytes: float
    bandwidth: float
    """Of its memory, bytes a second."""
    watts: float
    """Board power."""
    source: str


def _row(
    name: str, devices: str, bf16: float, tf32: float | None, fp8: float | None, fp32: float, gigabytes: float,
    terabytes_per_second: float, watts: float, source: str,
) -> Accelerator:  # fmt: skip
    """A row with rates in TFLOP/s as data sheets print them; device names apart by a bar."""
    return Accelerator(
        name, tuple(devices.split("|")), bf16 * 1e12, tf32 and tf32 * 1e12, fp8 and fp8 * 1e12, fp32 * 1e12,
        gigabytes * 1e9, terabytes_per_second * 1e12, watts, source,
    )  # fmt: skip


#    name           device names                  bf16    tf32    fp8   fp32  GB  TB/s   W   source
ACCELERATORS = (
    _row("a10", "NVIDIA A10", 125, 62.5, None, 31.2, 24, 0.600, 150, "NVIDIA A10 data sheet"),
    _row("a30", "NVIDIA A30", 165, 82, None, 10.3, 24, 0.933, 165, "NVIDIA A30 data sheet"),
    _row("a40", "NVIDIA A40", 149.7, 74.8, None, 37.4, 48, 0.696, 300, "NVIDIA A40 data sheet"),
    _row("a100-40gb", "NVIDIA A100-SXM4-40GB", 312, 156, None, 19.5, 40, 1.555, 400, "NVIDIA A100 data sheet"),
    _row("a100-40gb-pcie", "NVIDIA A100-PCIE-40GB", 312, 156, None, 19.5, 40, 1.555, 250, "NVIDIA A100 data sheet"),
    _row("a100-80gb", "NVIDIA A100-SXM4-80GB", 312, 156, None, 19.5, 80, 2.039, 400, "NVIDIA A100 data sheet"),
    _row("a100-80gb-pcie", "NVIDIA A100 80GB PCIe", 312, 156, None, 19.5, 80, 1.935, 300, "NVIDIA A100 data sheet"),
    _row("rtx-a6000", "NVIDIA RTX A6000", 154.8, 77.4, None, 38.7, 48, 0.768, 300, "NVIDIA GA102 white paper"),
    _row("rtx3090", "NVIDIA GeForce RTX 3090", 71, 35.6, None, 35.6, 24, 0.936, 350, "NVIDIA GA102 white paper"),
    _row("l4", "NVIDIA L4", 121, 60, 242.5, 30.3, 24, 0.300, 72, "NVIDIA L4 data sheet, halved (sparse 242)"),
    _row("l40", "NVIDIA L40", 181.05, 90.5, 362, 90.5, 48, 0.864, 300, "NVIDIA L40 data sheet"),
    _row("l40s", "NVIDIA L40S", 362.05, 183, 733, 91.6, 48, 0.864, 350, "NVIDIA L40S data sheet"),
    _row("rtx6000-ada", "NVIDIA RTX 6000 Ada Generation", 364.2, 182.1, 728.5, 91.1, 48, 0.960, 300,
         "NVIDIA Ada white paper"),
    _row("rtx4080", "NVIDIA GeForce RTX 4080", 97.5, 48.7, 194.9, 48.7, 16, 0.717, 320, "NVIDIA Ada white paper"),
    _row("rtx4090", "NVIDIA GeForce RTX 4090", 165.2, 82.6, 330.3, 82.6, 24, 1.008, 450, "NVIDIA Ada white paper"),
    _row("h100-sxm", "NVIDIA H100 80GB HBM3", 989.4, 494.7, 1978.9, 66.9, 80, 3.35, 700,
         "NVIDIA H100 data sheet, halved (sparse 1 979)"),
    _row("h100-pcie", "NVIDIA H100 PCIe", 756, 378, 1513, 51.2, 80, 2.0, 350,
         "NVIDIA H100 data sheet, halved (sparse 1 513)"),
    _row("h100-nvl", "NVIDIA H100 NVL", 835.5, 417.5, 1670.5, 60, 94, 3.9, 400,
         "NVIDIA H100 data sheet, halved (sparse 1 671)"),
    _row("h200", "NVIDIA H200", 989.4, 494.7, 1978.9, 66.9, 141, 4.8, 700,
         "NVIDIA H200 data sheet, halved (sparse 1 979)"),
    _row("h20", "NVIDIA H20", 148, 74, 296, 44, 96, 4.0, 400, "NVIDIA H20 data sheet"),
    _row("gh200", "NVIDIA GH200 480GB", 989.4, 494.7, 1978.9, 66.9, 96, 4.0, 1000,
         "NVIDIA GH200 data sheet, halved (sparse 1 979)"),
    _row("b200", "NVIDIA B200", 2250, 1125, 4500, 75, 180, 7.7, 1000, "NVIDIA HGX B200 data sheet, halved, of 8"),
    _row("gb200", "NVIDIA GB200", 2500, 1250, 5000, 80, 186, 8.0, 1200,
         "NVIDIA GB200 NVL72 data sheet, halved, of 72"),
    _row("rtx5080", "NVIDIA GeForce RTX 5080", 112.6, 56.3, 225.1, 56.3, 16, 0.960, 360,
         "NVIDIA RTX Blackwell white paper"),
    _row("rtx5090", "NVIDIA GeForce RTX 5090", 209.5, 104.8, 419, 104.8, 32, 1.792, 575,
         "NVIDIA RTX Blackwell white paper"),
    _row("rtx-pro-6000", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 503.8, 251.9, 1007.6, 126, 96, 1.792, 600,
         "NVIDIA RTX Blackwell PRO white paper"),
    _row("mi250x-gcd", "AMD Instinct MI250X", 191.5, None, None, 23.9, 64, 1.6, 280,
         "AMD Instinct MI250X data sheet, half of a card: torch sees each of its two dies as a device"),
    _row("mi300x", "AMD Instinct MI300X", 1307.4, 653.7, 2614.9, 163.4, 192, 5.3, 750, "AMD Instinct MI300X data sheet"),
    _row("mi325x", "AMD Instinct MI325X", 1307.4, 653.7, 2614.9, 163.4, 256, 6.0, 1000,
         "AMD Instinct MI325X data sheet"),
    _row("mi350x", "AMD Instinct MI350X", 2309.6, None, 4614, 144.2, 288, 8.0, 1000, "AMD Instinct MI350X data sheet"),
    _row("mi355x", "AMD Instinct MI355X", 2516.6, None, 5033.2, 157.3, 288, 8.0, 1400,
         "AMD Instinct MI355X data sheet"),
)  # fmt: skip


def of_device(device_name: str) -> Accelerator | None:
    """The row of what torch calls `device_name`; None for a card that is not in the table."""
    return next((row for row in ACCELERATORS if device_name in row.device_names), None)


def accelerator(name: str) -> Accelerator:
    """The row that `name` means: its whole name, or a short form such as h100, where the first row so named is meant.

    Raises UserError, naming the nearest, for a name that is not in the table.
    """
    wanted = name.lower().replace("_", "-")
    rows = [row for row in ACCELERATORS if row.name == wanted] or [
        row for row in ACCELERATORS if row.name.split("-")[0] == wanted or row.name.replace("-", "") == wanted
    ]
    if not rows:
        names = [row.name for row in ACCELERATORS]
        raise UserError(
            f"there is no data-sheet peak for '{name}'{did_you_mean(wanted, names)}: known are {', '.join(names)}; "
            "for another card give its dense bf16 peak itself, such as 120e12, or measure it there with "
            "yupana flops limits"
        )
    return rows[0]
