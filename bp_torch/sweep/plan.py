"""Which networks are trained at once: as many as memory and cache make quick.

On a CPU the step of K networks saves the time between the operations, until what it works on outgrows the cache: then
every operation waits for memory. A network works on its parameters, their gradient, its activations and δ, and, where
each has a shuffle of its own, on its mini-batch. Time for each network as a part of that of one trained alone:

    networks at once         2     3     4     8    12    16    32    64
    one shuffle for all   0.86  0.72  0.69  0.61  0.62  0.65  0.62  0.64
    a shuffle each        0.88  0.88  0.78  0.80  0.80  0.88  1.07  1.20

784-16-16-10, batches of 100, one thread of an AMD EPYC (Zen 5, 1 MB of level-2 cache for each core), torch 2.14.1,
2026-11-24, medians of seven turns while other processes ran. Hence: a group works on no more than ``CACHE``, which is 9
networks with a shuffle each and 30 with one for all (with momentum 8 and 22); and from ``ENOUGH`` settings on, a group
has one seed.

A GPU waits between operations until far more networks are at work: there only ``MANY`` and the memory bound a group.
"""

import os
from math import ceil, inf

import torch

from bp_torch.network import parameter_count
from bp_torch.sweep.config import SweepConfig
from bp_torch.training.config import Config

CACHE = 2**22  # bytes that a group on a CPU works on
ENOUGH = 3
"""Settings from which on networks of one seed make a group of their own: three that share a batch take less time each
than eight with a batch each."""
MANY = 128  # the most networks of a group on a GPU
FULL_BATCH = 60_000  # examples that --batch-size full is taken to have, before the data are read
UNKNOWN = 2**32  # bytes that are taken where the system does not say how many are free
COPIES = 4  # times the memory of what a group works on, that it needs: other results of a step, the state, its copies


def groups(config: SweepConfig, device: torch.device) -> list[list[Config]]:
    """The networks of a sweep, those that are trained at once together. Raises ValueError if memory has no room."""
    members, settings = config.members(), len(config.settings)
    one_seed = config.seeds == 1 or (config.at_once is None and device.type == "cpu" and settings >= ENOUGH)
    at_once = config.at_once or quickest(members[0], device, separate_batches=not one_seed)
    largest = min(at_once, len(members))
    needed = COPIES * working_set(members[0], separate_batches=not one_seed) * largest
    needed += own_images(members[0]) * (1 if one_seed else ceil(largest / settings))
    if config.at_once and len(members) > 1 and needed > (free := free_memory(device) or inf):
        have = f"need about {needed / 1e9:,.1f} GB, {device} has {free / 1e9:,.1f} GB free"
        raise ValueError(f"--at-once {at_once}: {largest:,} networks {have}")
    blocks = [members[i : i + settings] for i in range(0, len(members), settings)] if one_seed else [members]
    return [part for block in blocks for part in even_parts(block, at_once)]


def quickest(member: Config, device: torch.device, *, separate_batches: bool) -> int:
    """How many networks like ``member`` take the least time each when they are trained at once."""
    size = working_set(member, separate_batches=separate_batches)
    most = CACHE // size if device.type == "cpu" else MANY
    return max(
        1, min(most, (free_memory(device) or UNKNOWN) // (COPIES * size + own_images(member) * separate_batches))
    )


def even_parts(members: list[Config], most: int) -> list[list[Config]]:
    """Parts of about one size, of ``most`` networks each or fewer."""
    n, parts = len(members), ceil(len(members) / most)
    return [members[i * n // parts : (i + 1) * n // parts] for i in range(parts)]


def working_set(member: Config, *, separate_batches: bool) -> int:
    """Bytes that the step of one network of a group works on."""
    examples = member.train_examples or FULL_BATCH
    batch = examples if member.batch_size == "full" else min(member.batch_size, examples)
    numbers = (3 if member.momentum or member.weight_decay else 2) * parameter_count(member.sizes)
    numbers += batch * (2 * sum(member.sizes[1:]) + member.sizes[0] * separate_batches)
    itemsize: int = getattr(torch, member.dtype).itemsize
    return numbers * itemsize


def own_images(member: Config) -> int:
    """Bytes of the images of one seed, where they are not those of every other: as they came, and joined or deformed.

    What is drawn ahead for deformations is about half as much as images.
    """
    if member.deform == "none" and not member.train_examples and not member.validation:
        return 0
    return (3 if member.deform != "none" else 2) * member.sizes[0] * (member.train_examples or FULL_BATCH)


def free_memory(device: torch.device) -> int:
    """Bytes that are free; 0 where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # macOS and Windows do not say
        return 0
