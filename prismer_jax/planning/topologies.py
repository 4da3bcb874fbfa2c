"""TPUs that a plan can describe: what their chips can do, as published, and the devices of a slice of them.

Sources, read in November 2026: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p-training and /v6e for peaks, memories and
the bandwidth of the interconnect, which these pages give for all ports and both directions of a chip together (v4 and
v5e at 50 GB/s a port and direction, v5p and v6e at 100); the network between slices from the same pages (v5e 2 x 100
Gbit/s for 8 chips, v5p 50 Gbit/s a chip). v4 also stands in arXiv 2304.01433, table 4. No figure is published for the
network of v4 and v6e.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prismer_jax.errors import UserError

INSTALL = "pip install prismer_jax[plan]"


@dataclass(frozen=True)
class Chip:
    """One row of the table.

    Attributes:
      flops: bfloat16 operations a second.
      memory: bytes of HBM.
      memory_rate: bytes a second between HBM and the cores.
      link_rate: bytes a second of one port of the interconnect, in one direction.
      axes: of the torus; a chip has two ports on each.
      examples: shapes of slices that are offered; others that libtpu knows do, too.
      network_rate: bytes a second between slices, of one chip; None where none is published.
      config: libtpu's name of how the cores of a chip are used: as one device, as on the machines.
    """

    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    axes: int
    examples: tuple[str, ...]
    network_rate: float | None = None
    config: str = "default"


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 50e9, 3, ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"), config="megacore"),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 50e9, 2, ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"), 3.125e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 100e9, 3, ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"), 6.25e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 100e9, 2, ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
}
# What libtpu would otherwise ask a metadata server for, or complain of on stderr; the slice that is described counts.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a plan uses no device, so that two at a time are no harm
}
PATTERN = re.compile(r"(?:(\d+)x)?(v\d\w*?):(\d+(?:x\d+){1,2})")


@dataclass(frozen=True)
class Topology:
    """Slices of a pod.

    Attributes:
      name: as given, '2xv5e:4x4' for two slices of 16 chips.
      chip: what it is made of.
      devices: in JAX's order; they can be compiled for, and run nothing.
    """

    name: str
    chip: Chip
    devices: tuple[Any, ...]

    @property
    def kind(self) -> str:
        return next(kind for kind, chip in CHIPS.items() if chip is self.chip)

    @property
    def chips(self) -> int:
        return len(self.devices)

    def links(self, group: Sequence[Any]) -> int:
        """Returns how many of a chip's ports a collective of these devices can receive by.

        Both ports of every axis of the torus along which the group extends; of an axis of two chips, the one between
        them. The edges of a slice that is no whole torus have fewer, so that times are lower bounds.
        """
        extents = [len(set(axis)) for axis in zip(*(device.coords for device in group), strict=True)]
        return max(sum(min(extent - 1, 2) for extent in extents), 1)


def crosses_slices(group: Sequence[Any]) -> bool:
    """Returns whether a collective of these devices goes over the network between slices."""
    return len({getattr(device, "slice_index", 0) for device in group}) > 1


def describe(name: str) -> Topology:
    """Returns a topology by its name, such as 'v5e:16x16', 'v5p:2x2x2' or '2xv5e:4x4' (two slices).

    Raises:
      UserError: libtpu is not installed, or there are no such slices; the message says which there are.
    """
    match = PATTERN.fullmatch(name)
    kind = match[2] if match else name.partition(":")[0]
    if match is None or kind not in CHIPS:
        listed = "; ".join(f"{kind}:{', '.join(chip.examples)}" for kind, chip in CHIPS.items())
        raise UserError(f"Unknown topology {name!r}. Slices, of which 2xv5e:4x4 names two: {listed}.")
    chip = CHIPS[kind]
    shape = match[3] + "x1" * (chip.axes - 1 - match[3].count("x"))
    try:
        devices = _devices(f"{kind}:{shape}", int(match[1] or 1), chip.config)
    except ModuleNotFoundError:
        raise UserError(f"--plan needs libtpu, which compiles for TPUs without one: {INSTALL}") from None
    except Exception as error:  # jaxlib's own, which names the reason in its first line
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"No slice {name!r} ({reason}). Of {kind} there are {', '.join(chip.examples)}.") from None
    return Topology(name, chip, devices)


def _devices(name: str, slices: int, chip: str) -> tuple[Any, ...]:
    import libtpu  # noqa: F401  (only whether it is there; JAX loads it)
    from jax.experimental import topologies

    for name_and_value in ENVIRONMENT.items():
        os.environ.setdefault(*name_and_value)
    more = {"chip_config_name": chip} | ({"num_slices": slices} if slices > 1 else {})
    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices)
