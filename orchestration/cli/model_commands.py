"""The commands for networks: `separator import`, `encoder import | export`, `embed`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from sepscene.orchestration.cli.arguments import TrustCode
from sepscene.orchestration.terminal import Terminal

console = Terminal()
encoder_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Import or export an encoder.")


def import_separator_command(
    prefix: Annotated[
        str, typer.Argument(help="`…/model.ckpt-1234` (TensorFlow), or a .pt, .pt2 or .safetensors file.")
    ],
    sample_rate: Annotated[
        int, typer.Option(min=1, help="Sample rate of the network in Hz; the files do not contain it.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    blocks: Annotated[int | None, typer.Option(help="Dilated blocks per repeat of a TDCN++. Default: 8.")] = None,
    window_samples: Annotated[int | None, typer.Option(help="Samples of the STFT window. Default: 32 ms.")] = None,
    hop_samples: Annotated[
        int | None, typer.Option(help="Samples of the hop. Default: 1.25 ms for a learned basis, 8 ms for an STFT.")
    ] = None,
    consistency: Annotated[
        str | None, typer.Option(help="`magsq` or `uniform`, for a TDCN++ without mix_weights.")
    ] = None,
    mask_activation: Annotated[str | None, typer.Option(help="`sigmoid` or `relu`, for a Conv-TasNet.")] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run a TorchScript file, which can read and write your files.")
    ] = False,
) -> None:
    """Import a separator as a processor.

    Reads TensorFlow checkpoints of the MixIT TDCN++ (without TensorFlow), state dicts of torchaudio's ConvTasNet, and
    any TorchScript or torch.export program that maps (B, T) to (B, S, T). Nothing is unpickled. A torch.export program
    (.pt2) can only compute. A TorchScript program can access all your files, so each file needs --trust-code once.

    Example: `sepscene separator import yfcc/model.ckpt-3223090 --sample-rate 16000 --out separators/yfcc`
    """
    from pydantic import ValidationError

    from sepscene.models.config import SepsceneError
    from sepscene.models.separators.import_tdcnpp import ImportHints
    from sepscene.models.separators.importer import import_separator
    from sepscene.orchestration.config import explain

    given = {
        "blocks": blocks,
        "window_samples": window_samples,
        "hop_samples": hop_samples,
        "consistency": consistency,
        "mask_activation": mask_activation,
    }
    try:
        hints = ImportHints.model_validate(given)
    except ValidationError as error:
        raise SepsceneError(f"bad option:\n{explain(error, ImportHints)}") from None
    digest = import_separator(prefix, sample_rate, out, hints, trust_code)
    console.print(f"{out}  {digest[:12]}")
    _print_assumptions(out)
    console.print(f"use it with: --set separator.checkpoints='{{S2: {out}}}'")


@encoder_app.command("import")
def import_encoder_command(
    file: Annotated[Path, typer.Argument(help="A published PANNs CNN14 checkpoint (.pth).")],
    front_end: Annotated[
        Literal["paper", "panns_16k", "panns_32k"], typer.Option(help="The front-end it was trained with.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
) -> None:
    """Convert PANNs' CNN14 into an encoder bundle.

    The bundle serves as a baseline or as initial weights. h is the 2048-dimensional `embedding` of the network.

    Example: `sepscene encoder import Cnn14_16k_mAP=0.438.pth --front-end panns_16k --out encoders/panns`
    """
    from sepscene.models.encoders.importer import import_encoder

    digest = import_encoder(file, front_end, out)
    console.print(f"{out}  {digest[:12]}")
    _print_assumptions(out)


def _print_assumptions(out: Path) -> None:
    """Print the assumptions about what the imported file does not specify."""
    from sepscene.models.card import read_card

    for assumed in read_card(out).metadata["assumed"]:
        console.print(f"assumed {assumed}", style="yellow")


@encoder_app.command("export")
def export_encoder_command(
    encoder: Annotated[str, typer.Argument(help="Folder or MLflow URI of an encoder bundle.")],
    file: Annotated[Path, typer.Argument(help="The .pth file to write.")],
    trust_code: TrustCode = False,
) -> None:
    """Write an encoder's weights in the format of PANNs.

    The names are those of PANNs, and the front-end's buffers are included, so that code written for PANNs can load
    the file.

    Example: `sepscene encoder export runs/demo/encoder cnn14.pth`
    """
    from sepscene.models.encoders.encoder import load_encoder
    from sepscene.models.encoders.importer import export_panns

    export_panns(load_encoder(encoder), file)
    console.print(str(file))


def embed_command(
    encoder: Annotated[str, typer.Argument(help="Folder of an encoder bundle or of a run, or an MLflow URI.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, manifests (.csv, .parquet) or FORMAT:FOLDER; `-` reads names from standard input."
        ),
    ],
    out: Annotated[Path, typer.Option(help="`NAME.parquet`, or `NAME.npy` (also writes `NAME.names.json`).")],
    device: Annotated[
        str, typer.Option(help="Without `--actors`: `cpu`, `cuda`, `cuda:1`, or `auto`, a GPU if there is one.")
    ] = "auto",
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Compute in bfloat16 on a GPU.")] = False,
    readers: Annotated[int, typer.Option(min=1, help="Number of files that are decoded in advance.")] = 2,
    actors: Annotated[int, typer.Option(min=0, help="Ray actors that share the work; 0 uses this process only.")] = 0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs per actor, with `--actors`.")] = 0.0,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster, with `--actors`.")] = None,
    trust_code: TrustCode = False,
) -> None:
    """Compute embeddings of sound files.

    An interrupted command continues where it stopped when it is run again. Files that cannot be read are listed at the
    end; the exit code is then 3.

    Example: `sepscene embed runs/demo recordings/ --out embeddings.parquet`
    """
    from sepscene.orchestration.api import embed

    report = embed(
        encoder,
        inputs,
        out,
        device=device,
        bfloat16=bfloat16,
        readers=readers,
        actors=actors,
        gpus=gpus,
        address=address,
    )
    console.print(f"{report.out}: {report.written} new, {report.skipped} already present")
    for entry in report.left_out:
        console.print(f"skipped: {entry}", soft_wrap=True)
    for uri, cause in report.bad.items():
        print(f"{uri}: {cause}", file=sys.stderr)
    if report.bad:
        raise typer.Exit(3)
