"""A scaling law from points, and what it says of an afternoon on one H100. Pass a CSV of your own runs."""

import math
import random
import sys
from pathlib import Path

import yupana

if len(sys.argv) > 1:
    csv = Path(sys.argv[1])
else:  # points that a known law gives, with a little noise: the fit has to find it again
    csv = Path("points.csv")
    random.seed(0)
    rows = ["n_params,flops,loss"]
    for n in (1e7, 3e7, 1e8, 3e8, 1e9):
        for ratio in (5, 10, 20, 40, 80):
            loss = 1.8 + 480 / n**0.35 + 2100 / (ratio * n) ** 0.37
            rows.append(f"{n:g},{6 * n * ratio * n:g},{loss * math.exp(random.gauss(0, 0.002)):.5f}")
    csv.write_text("\n".join(rows) + "\n")

law = yupana.fit(csv, refits=50)
print("parameters", {name: round(value, 3) for name, value in law["parameters"].items()})
print(f"best size grows as compute to the power {law['exponent_n']:.3f}")

plan = yupana.plan(hardware="h100", hours=4, mfu=0.45)
print(f"4 hours of one H100: {plan['parameters'] / 1e6:,.0f} M parameters, {plan['tokens'] / 1e9:,.2f} G tokens, "
      f"loss {plan['loss']:.3f}")  # fmt: skip
