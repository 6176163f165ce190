"""Are the kernels right on the device, and is each worth its place? One call of under ten minutes.

    python benchmarks/kernel_speed.py --out DIR [--device cuda|cpu] [--quick]

The question ``kernels`` of ``gpu.py`` with all of its time. With ``--device cpu --quick`` the kernels run in Triton's
interpreter on the smallest shapes: that shows that everything runs, and nothing about speed.
"""

import sys

import gpu

if __name__ == "__main__":
    raise SystemExit(gpu.main([*sys.argv[1:], "--only", "kernels"]))
