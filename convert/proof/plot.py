"""A picture of how far two nets are apart, layer by layer."""

import io

from matplotlib.figure import Figure

from convert.proof.report import Report
from convert.proof.verify import FLOAT64_BAR

_SMALLEST = 1e-17


def plot_layers(report: Report) -> bytes:
    """A PNG: each layer's float64 difference against its bar, and both nets' float32 errors."""
    layers = report.proof.layers
    places = range(len(layers))
    figure = Figure(figsize=(11, 4.5), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    series = (
        ("PyTorch float32 against float64", "torch_float32", "tab:orange", "s"),
        ("JAX float32 against float64", "jax_float32", "tab:blue", "o"),
        ("JAX float64 against PyTorch float64", "float64", "tab:green", "^"),
    )
    for label, field, colour, marker in series:
        values = [max(getattr(layer, field), _SMALLEST) for layer in layers]
        axes.semilogy(places, values, marker=marker, markersize=4, linewidth=1, color=colour, label=label)
    axes.axhline(FLOAT64_BAR, color="tab:red", linestyle="--", linewidth=1, label="bar of the float64 difference")
    axes.set_xticks(places, [layer.name for layer in layers], rotation=90, fontsize=5)
    axes.set_ylabel("relative error")
    axes.set_title(f"{report.source}: every batch normalisation's output, {report.layout}", fontsize=10)
    axes.legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.4))
    axes.grid(axis="y", linewidth=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
