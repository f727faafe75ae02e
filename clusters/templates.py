"""Fills the templates in this folder with a user's sizes and names. Works in a checkout and in an installed package."""

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

_CLOUDS = ("aws.yaml", "gcp.yaml")
_FIXED_SIZE = ("onprem.yaml", "skypilot.yaml")


@dataclass(frozen=True)
class Sizes:
    """The size of a pool; None keeps the template's number. CPUs and GPUs per node can be set for Slurm only."""

    nodes: int | None = None
    cpus: int | None = None
    gpus: int | None = None


def write_template(name: str, out: Path, sizes: Mapping[str, Sizes], values: Mapping[str, str]) -> list[Path]:
    """Write a template and its list of pools, if it has one, with sizes and names filled in; returns the files.

    Args:
        name: one of TEMPLATES, with or without its suffix.
        sizes: "trainers" and "separators" -> size of that pool.
        values: text in the template -> its replacement, e.g. {"YOUR-BUCKET": "clips"}.

    Raises:
        SepsceneError: for an unknown template, a size that it does not support, a text that it does not contain, or a
            file that exists already.
    """
    file = next((each for each in TEMPLATES if name in (each, each.partition(".")[0])), None)
    if file is None:
        raise SepsceneError(unknown(name, TEMPLATES, "template"))
    pool_list = (FOLDER / file).with_suffix(".pools.yaml")
    pools_out = out.with_suffix(".pools.yaml")
    written = [out, pools_out] if pool_list.exists() else [out]
    for path in written:
        if path.exists():
            raise SepsceneError(f"{path} exists already: choose another name, or move the file")
    text = _sized((FOLDER / file).read_text(), file, sizes)
    for old, new in values.items():
        if old not in text:
            raise SepsceneError(f"--fill: {file} does not contain {old!r}; give a text that is in the template")
        text = text.replace(old, new)
    text = text.replace(f"clusters/{file}", str(out)).replace(f"clusters/{pool_list.name}", str(pools_out))
    out.parent.mkdir(parents=True, exist_ok=True)
    if pool_list.exists():
        pools = [_resized(pool, sizes.get(pool.name, Sizes())) for pool in read_pools(pool_list)]
        pools_out.write_text(write_pools(pools))
    out.write_text(text)
    if file.endswith(".sh"):
        out.chmod(0o755)
    read_pools(out)  # check that the written files can be read
    return written


def _resized(pool: Pool, sizes: Sizes) -> Pool:
    cpus = pool.node.cpus if sizes.cpus is None else float(sizes.cpus)
    gpus = pool.node.gpus if sizes.gpus is None else sizes.gpus
    node = replace(pool.node, cpus=cpus, gpus=gpus, accelerator=pool.node.accelerator if gpus else None)
    most = pool.most if sizes.nodes is None else sizes.nodes
    return replace(pool, node=node, most=most, least=most if pool.least == pool.most else pool.least)


def _sized(text: str, file: str, sizes: Mapping[str, Sizes]) -> str:
    """The template's text with the sizes of its pools."""
    for pool, size in sizes.items():
        if size == Sizes():
            continue
        if file in _FIXED_SIZE:
            raise SepsceneError(f"the size of {file} cannot be set by options: edit the file and its .pools.yaml")
        if file != "slurm.sh" and (size.cpus is not None or size.gpus is not None):
            raise SepsceneError(f"{file}: the machine type determines CPUs and GPUs; change the type in the file")
        places = {
            "(?:max_workers: |maxReplicas: |#SBATCH --nodes=)": size.nodes,
            "#SBATCH --cpus-per-task=": size.cpus,
            f"{pool[:-1].upper()}_CPUS=": size.cpus,
            r"#SBATCH --gpus-per-node=\w+:": size.gpus,
        }
        start = _start(file, pool)
        for place, number in places.items():
            if number is not None:
                text = re.sub(rf"(?ms)({start}.*?{place})\d+", rf"\g<1>{number}", text, count=1)
        if size.gpus == 0:
            text = re.sub(rf"(?ms)({start}.*?)#SBATCH --gpus-per-node=\w+:0\n", r"\1", text, count=1)
    if file in _CLOUDS:  # the limit for all workers together
        counts = [int(count) for count in re.findall(r"(?m)^    max_workers: (\d+)", text)]
        text = re.sub(r"(?m)^max_workers: \d+", f"max_workers: {sum(counts)}", text)
    return text


def _start(file: str, pool: str) -> str:
    """A pattern for the start of a pool's section; in Slurm's script, the trainers come first."""
    if file == "slurm.sh":
        return {"trainers": r"\A", "separators": "^#SBATCH hetjob"}[pool]
    return f"^  {pool}:" if file in _CLOUDS else f"groupName: {pool}"
