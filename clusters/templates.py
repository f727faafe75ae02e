"""The templates of this folder with a user's sizes and names filled in, in a checkout and from an installed wheel."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sepscene.clusters.descriptions import read_pools, write_pools
from sepscene.clusters.pools import Pool
from sepscene.models.config import SepsceneError
from sepscene.models.spelling import unknown

FOLDER = Path(__file__).resolve().parent
TEMPLATES = ("aws.yaml", "gcp.yaml", "onprem.yaml", "raycluster.yaml", "rayjob.yaml", "skypilot.yaml", "slurm.sh")

_POOL_STARTS = {
    "aws.yaml": r"^  (?:separators|trainers):",
    "gcp.yaml": r"^  (?:separators|trainers):",
    "raycluster.yaml": r"groupName: (?:separators|trainers)",
    "rayjob.yaml": r"groupName: (?:separators|trainers)",
    "slurm.sh": r"^#SBATCH --partition=",
}
"""Where a template begins to speak of a pool; Slurm's script of the trainers first."""

_COUNT = r"(max_workers: |maxReplicas: |#SBATCH --nodes=)\d+"
_CPUS = r"(#SBATCH --cpus-per-task=)\d+"
_GPUS = r"(#SBATCH --gpus-per-node=\w+:)\d+"


@dataclass(frozen=True)
class Sizes:
    """What a pool is to have; none leaves the template's number. Slurm alone takes a node's CPUs and GPUs."""

    nodes: int | None = None
    cpus: int | None = None
    gpus: int | None = None


def write_template(name: str, out: Path, sizes: Mapping[str, Sizes], values: Mapping[str, str]) -> list[Path]:
    """Write a template, and the list of pools that belongs to it, with sizes and names filled in; returns the files.

    Args:
        name: one of TEMPLATES, with or without its suffix.
        sizes: "trainers" and "separators" -> what that pool has.
        values: text of the template -> what stands there instead, e.g. {"YOUR-BUCKET": "clips"}.

    Raises:
        SepsceneError: for an unknown template, a size that it cannot have, a text that it doesn't hold, or a file that
            exists.
    """
    file = next((each for each in TEMPLATES if name in (each, each.partition(".")[0])), None)
    if file is None:
        raise SepsceneError(unknown(name, TEMPLATES, "template"))
    beside = (FOLDER / file).with_suffix(".pools.yaml")
    pools_out = out.with_suffix(".pools.yaml")
    written = [out, pools_out] if beside.exists() else [out]
    for path in written:
        if path.exists():
            raise SepsceneError(f"{path} exists: choose another name, or move it away")
    text = _sized((FOLDER / file).read_text(), file, sizes)
    for old, new in values.items():
        if old not in text:
            raise SepsceneError(f"{file} has no {old!r} to fill in")
        text = text.replace(old, new)
    text = text.replace(f"clusters/{file}", str(out)).replace(f"clusters/{beside.name}", str(pools_out))
    out.parent.mkdir(parents=True, exist_ok=True)
    if beside.exists():
        pools = [_resized(pool, sizes.get(pool.name, Sizes())) for pool in read_pools(beside)]
        pools_out.write_text(write_pools(pools))
    out.write_text(text)
    if file.endswith(".sh"):
        out.chmod(0o755)
    read_pools(out)  # what was written can be read back
    return written


def _resized(pool: Pool, sizes: Sizes) -> Pool:
    cpus = pool.node.cpus if sizes.cpus is None else float(sizes.cpus)
    gpus = pool.node.gpus if sizes.gpus is None else sizes.gpus
    node = replace(pool.node, cpus=cpus, gpus=gpus, accelerator=pool.node.accelerator if gpus else None)
    most = pool.most if sizes.nodes is None else sizes.nodes
    return replace(pool, node=node, most=most, least=most if pool.least == pool.most else pool.least)


def _sized(text: str, file: str, sizes: Mapping[str, Sizes]) -> str:
    """The template's text with the sizes of its pools."""
    if not any(size != Sizes() for size in sizes.values()):
        return text
    if file not in _POOL_STARTS:
        raise SepsceneError(f"{file} lists its machines one by one: change them, and its .pools.yaml, by hand")
    first, *pieces = re.split(f"(?m)(?={_POOL_STARTS[file]})", text)
    names = [_pool_of(piece, number, file) for number, piece in enumerate(pieces)]
    pieces = [_fill(piece, file, sizes.get(name, Sizes())) for name, piece in zip(names, pieces, strict=True)]
    text = first + "".join(pieces)
    if file in ("aws.yaml", "gcp.yaml"):  # the bound on all workers
        counts = [int(count) for count in re.findall(r"(?m)^    max_workers: (\d+)", text)]
        text = re.sub(r"(?m)^max_workers: \d+", f"max_workers: {sum(counts)}", text)
    if file == "slurm.sh":
        for name, variable in (("trainers", "TRAINER_CPUS"), ("separators", "SEPARATOR_CPUS")):
            cpus = sizes.get(name, Sizes()).cpus
            if cpus is not None:
                text = re.sub(rf"{variable}=\d+", f"{variable}={cpus}", text)
    return text


def _pool_of(piece: str, number: int, file: str) -> str:
    return ("trainers", "separators")[number] if file == "slurm.sh" else re.findall("separators|trainers", piece)[0]


def _fill(piece: str, file: str, sizes: Sizes) -> str:
    if file != "slurm.sh" and (sizes.cpus is not None or sizes.gpus is not None):
        raise SepsceneError(f"{file}: CPUs and GPUs come with the type of machine; change that in the file")
    for pattern, number in ((_COUNT, sizes.nodes), (_CPUS, sizes.cpus), (_GPUS, sizes.gpus)):
        if pattern == _GPUS and number == 0:
            piece = re.sub(r"(?m)^#SBATCH --gpus-per-node=.*\n", "", piece)
        elif number is not None:
            piece = re.sub(pattern, rf"\g<1>{number}", piece, count=1)
    return piece
