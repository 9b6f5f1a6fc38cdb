"""What a conversion found, did and measured, as text for the screen and as a certificate to keep."""

import json
from dataclasses import dataclass, field

from convert.proof.verify import FLOAT64_BAR, Proof
from flax_shufflenet import Architecture
from flax_shufflenet.system.versions import versions

_PACKAGES = ("flax-shufflenet", "jax", "flax", "torch", "numpy", "safetensors")


@dataclass(frozen=True)
class Report:
    """One conversion. ``proof`` says how close the two nets are."""

    source: str
    sha256: str
    kind: str
    layout: str
    architecture: Architecture
    tensors: int
    parameters: int
    notes: tuple[str, ...]
    proof: Proof
    target: str = "Flax"
    mapped: str = "by name, none left over; mapped back they are the same bit for bit"
    versions: dict[str, str] = field(default_factory=lambda: versions(*_PACKAGES))

    def lines(self) -> list[str]:
        """For the screen; each line stands on its own."""
        architecture, proof = self.architecture, self.proof
        classes = f"{architecture.num_classes} classes" if architecture.num_classes else "no head"
        widths = (architecture.stem_width, *architecture.stage_widths)
        last = architecture.last_width or "no last convolution"
        net = (
            f"widths {', '.join(map(str, widths))}, {last}; "
            f"basic blocks {', '.join(map(str, architecture.stage_blocks))}; "
            f"split {architecture.split_ratio:g}; {classes}; {self.parameters:,} parameters"
        )
        rows = [
            ("file", f"{self.source} ({self.kind})"),
            ("sha256", self.sha256),
            ("layout", self.layout),
            ("net", net),
            *(tuple(note.split(": ", 1)) if ": " in note else ("note", note) for note in self.notes),
            ("mapped", f"{self.tensors} tensors {self.mapped}"),
            (
                "checked",
                f"images {', '.join(proof.batches)}; PyTorch {self.versions['torch']} against "
                f"JAX {self.versions['jax']} on {proof.device}",
            ),
            *_measured(proof),
        ]
        if (elsewhere := proof.elsewhere) is not None:
            rows += [("checked", f"the same images on {elsewhere.device}, at JAX's highest precision")]
            rows += _measured(elsewhere)
        return [f"{name:<10}{value}" for name, value in rows]

    def markdown(self) -> str:
        """The certificate: everything measured, layer by layer."""
        result = f"failed: {self.proof.failure}" if self.proof.failure else "proven"
        lines = [
            f"# Conversion of {self.source} to {self.target}: {result}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {line[:10].strip()} | {line[10:].strip()} |" for line in self.lines()),
            f"| versions | {', '.join(f'{name} {number}' for name, number in self.versions.items())} |",
            f"| architecture | `{self.architecture.to_json()}` |",
            "",
            "Outputs of each batch normalisation on the first batch. float64: largest difference between the two nets. "
            "float32: root mean square error of each against PyTorch in float64. All relative.",
            "",
            "| layer | shape | float64 | float32, PyTorch | float32, JAX |",
            "|---|---|---|---|---|",
            *(
                f"| `{layer.name}` | {'x'.join(map(str, layer.shape))} | {layer.float64:.1e} | "
                f"{layer.torch_float32:.1e} | {layer.jax_float32:.1e} |"
                for layer in self.proof.layers
            ),
        ]
        return "\n".join(lines) + "\n"

    def metadata(self) -> dict[str, str]:
        """What a converted file keeps of where it came from."""
        return {
            "source": self.source,
            "source_sha256": self.sha256,
            "versions": json.dumps(self.versions),
            "proof": json.dumps(
                {
                    "float64_difference": self.proof.float64,
                    "float32_error": self.proof.jax_float32,
                    "float32_error_of_torch": self.proof.torch_float32,
                    "top1": f"{self.proof.top1_agreeing}/{self.proof.top1_images}",
                }
            ),
        }


def _measured(proof: Proof) -> list[tuple[str, str]]:
    return [
        ("float64", f"largest difference {proof.float64:.1e} of the largest output (bar {FLOAT64_BAR:.0e})"),
        (
            "float32",
            f"JAX's error {proof.jax_float32:.1e}, PyTorch's own {proof.torch_float32:.1e}: "
            f"{proof.float32_ratio:.2f} times (bar {proof.float32_bar:g})",
        ),
        ("top-1", f"the same for {proof.top1_agreeing} of {proof.top1_images} images"),
    ]


def failure_table(proof: Proof) -> list[str]:
    """Around the first layer that differs: names and differences, for the screen."""
    first = proof.first_diverging
    if first is None:
        return []
    shown = proof.layers[max(first - 2, 0) : first + 4]
    return [f"{layer.name:<34}{'x'.join(map(str, layer.shape)):<18}{layer.float64:.1e}" for layer in shown]
