"""What a plan says: memory a device, operations, messages, and the time that a step takes at least."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from prismer_jax.planning.program import Collective
from prismer_jax.planning.topologies import Topology, crosses_slices


@dataclass(frozen=True)
class Plan:
    """A training step, compiled for a topology.

    Attributes:
      topology, mesh, sharding: where; the name of the preset.
      batch_size: examples a step, of all devices.
      parameters, gradients, optimizer, batch, others: bytes that one device holds; others are a model's statistics and
        tables. Gradients lie among the temporaries.
      model_flops: of all devices, see `model_flops`.
      facts: of one device: `fits`, `peak` (bytes); if it fits also `arguments`, `temporaries`, and what `program.facts`
        returns.
    """

    topology: Topology
    mesh: Mesh
    sharding: str
    batch_size: int
    parameters: int
    gradients: int
    optimizer: int
    batch: int
    others: int
    model_flops: float
    facts: dict[str, Any]

    @property
    def fits(self) -> bool:
        return self.facts["fits"]

    @property
    def peak(self) -> float:
        """Returns the bytes that the step takes at once; at most those of the device, if XLA accepted it.

        Its temporaries have what it puts into the memory on the chip in them, which it does not tell apart.
        """
        return min(self.facts["peak"], self.topology.chip.memory) if self.fits else self.facts["peak"]

    @property
    def collectives(self) -> list[Collective]:
        return [Collective(**{**one, "group": tuple(one["group"])}) for one in self.facts["collectives"]]

    @property
    def times(self) -> dict[str, float]:
        """Seconds that a step takes at least, of each kind of work, if it had the device for itself."""
        chip = self.topology.chip
        seconds = {
            "compute": self.facts["flops"] / chip.flops,
            "memory": self.facts["traffic"] / chip.memory_rate,
            "interconnect": 0.0,
            "network": 0.0,
        }
        for one in self.collectives:
            group = [self.mesh.devices.flat[i] for i in one.group]
            if not crosses_slices(group):
                seconds["interconnect"] += one.sent / (self.topology.links(group) * chip.link_rate)
            elif chip.network_rate:
                # What goes out of a slice is the same for all of a group within it, who can share the work.
                within = len(group) / len({getattr(device, "slice_index", 0) for device in group})
                seconds["network"] += one.sent / chip.network_rate / within
        return seconds

    @property
    def seconds(self) -> float:
        """A step's, at least: the longest of its times, as if all the others were hidden behind it."""
        return max(self.times.values())

    @property
    def rate(self) -> float:
        """Examples a second, at most."""
        return self.batch_size / self.seconds

    @property
    def mfu(self) -> float:
        """The model's share of the chips' peak, at most."""
        return self.model_flops / self.seconds / (self.topology.chips * self.topology.chip.flops)

    @property
    def chip_seconds(self) -> float:
        """The chip-seconds that a thousand examples take at least."""
        return 1000 * self.topology.chips / self.rate

    def lines(self) -> list[str]:
        """Returns the plan in words and numbers."""
        chip, axes = self.topology.chip, " ".join(f"{name}={size}" for name, size in self.mesh.shape.items())
        head = f"{self.topology.name}, {self.topology.chips} chips, mesh {axes}, sharding {self.sharding}"
        rows = [
            f"{head}, batch {self.batch_size}; per chip:",
            f"  parameters            {_size(self.parameters)}",
            f"  gradients             {_size(self.gradients)}  (at most; among the temporaries)",
            f"  optimizer's state     {_size(self.optimizer)}",
            f"  batch                 {_size(self.batch)}",
        ]
        if not self.fits:
            usable = self.facts["usable"] / 2**30
            return [
                *rows,
                f"  peak                  {_size(self.peak)}  does not fit: {usable:.2f} GiB are usable",
            ]
        padding = self.facts["arguments"] / (self.parameters + self.optimizer + self.batch + self.others) - 1
        sums = collections.Counter[str]()
        for one in self.collectives:
            sums[one.kind] += one.sent
        times = ", ".join(f"{name} {1000 * time:.1f} ms" for name, time in self.times.items() if time)
        again = self.facts["flops"] * self.mesh.size / self.model_flops
        share = self.facts["flops_float32"] / self.facts["flops"]
        return [
            *rows,
            f"  temporaries           {_size(self.facts['temporaries'])}  (activations, gradients and the rest)",
            f"  peak                  {_size(self.peak)}  of {chip.memory / 2**30:.0f} GiB: fits "
            f"(what lies there between steps is {100 * padding:.0f}% larger by padding)",
            f"  model FLOPs           {self.model_flops / self.mesh.size / 1e12:10.3f} T",
            f"  XLA's FLOPs           {self.facts['flops'] / 1e12:10.3f} T  ({again:.2f} of the model's: done again, or"
            f" by several; {100 * share:.0f}% of it on float32)",
            f"  memory traffic        {_size(self.facts['traffic'])}",
            *(f"  {kind:<21} {_size(size)}  received" for kind, size in sums.most_common()),
            *(
                f"    largest: {one.sent / 2**20:.1f} MiB {one.kind}, {one.count} x, {one.op_name}"
                for one in self.collectives[:3]
            ),
            f"  estimate, if all overlaps: {times}",
            f"  at most {self.rate:,.0f} examples a second, MFU {self.mfu:.2f}",
        ]


def _size(size: float) -> str:
    return f"{size / 2**30:8.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:8.2f} MiB"


def table(plans: Sequence[Plan]) -> list[str]:
    """Returns a table of plans, a row each, and lines that name the cheapest that fits of each kind of chip.

    Cheapest is what takes the least time of chips for an example, by the estimate; of those within 2%, the one of the
    fewest chips. What a chip costs an hour depends on region and contract, so kinds are not compared.
    """
    lines = [
        "| topology | sharding | parameters | optimizer | temporaries | peak, GiB | fits | examples/s, at most "
        "| MFU, at most | bound by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in plans:
        start = f"| {one.topology.name} | {one.sharding} | {_short(one.parameters)} | {_short(one.optimizer)} |"
        if one.fits:
            bound = max(one.times, key=lambda name: one.times[name])
            end = f"yes | {one.rate:,.0f} | {one.mfu:.2f} | {bound} |"
            lines.append(f"{start} {_short(one.facts['temporaries'])} | {_short(one.peak)} | {end}")
        else:
            lines.append(f"{start} | {_short(one.peak)} | no | | | |")
    for kind in dict.fromkeys(one.topology.kind for one in plans):
        fitting = [one for one in plans if one.fits and one.topology.kind == kind]
        if not fitting:
            lines.append(f"None of {kind} fits.")
            continue
        least = min(one.chip_seconds for one in fitting)
        best = min((one for one in fitting if one.chip_seconds <= 1.02 * least), key=lambda one: one.topology.chips)
        lines.append(
            f"Cheapest of {kind} that fits: {best.topology.name} {best.sharding}, {best.chip_seconds:.2f} chip-seconds "
            "for a thousand examples at least."
        )
    return lines


def _short(size: float) -> str:
    return f"{size / 2**30:.2f}"
