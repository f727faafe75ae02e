"""The commands that bring networks in and take them out: `separator import`, `encoder import | export`, `embed`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from sepscene.orchestration.cli.arguments import TrustCode
from sepscene.orchestration.terminal import Terminal

console = Terminal()
encoder_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Bring an encoder, or take one away.")

Device = Annotated[str, typer.Option(help="`auto` takes a GPU where there is one; `cpu`, `cuda`, `cuda:1`.")]


def import_separator_command(
    prefix: Annotated[str, typer.Argument(help="`…/model.ckpt-1234` (TensorFlow), or a .pt, .pt2, .safetensors file.")],
    sample_rate: Annotated[int, typer.Option(min=1, help="Hz at which it works; no format says it.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    blocks: Annotated[int | None, typer.Option(help="Dilated blocks a repeat of a TDCN++ (8 when absent).")] = None,
    window_samples: Annotated[int | None, typer.Option(help="STFT window (32 ms when absent).")] = None,
    hop_samples: Annotated[
        int | None, typer.Option(help="Hop; 1.25 ms of a learned basis, 8 ms of an STFT when absent.")
    ] = None,
    consistency: Annotated[
        str | None, typer.Option(help="`magsq` or `uniform`, of a TDCN++ without mix_weights.")
    ] = None,
    mask_activation: Annotated[str | None, typer.Option(help="`sigmoid` or `relu`, of a Conv-TasNet.")] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="A TorchScript file: run it, though it can read and write your files.")
    ] = False,
) -> None:
    """Turn somebody's separator into one of ours, so that it can serve as a processor.

    Reads TensorFlow checkpoints of the MixIT TDCN++ (without TensorFlow), state dicts of torchaudio's ConvTasNet, and
    any TorchScript or torch.export program that maps (B, T) to (B, S, T). Nothing is unpickled. A torch.export program
    (.pt2) may only compute. TorchScript can do with files what you can: it needs --trust-code, once for each file.

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
    console.print(f"use it: --set separator.checkpoints='{{S2: {out}}}'")


@encoder_app.command("import")
def import_encoder_command(
    file: Annotated[Path, typer.Argument(help="A published PANNs CNN14 checkpoint (.pth).")],
    front_end: Annotated[
        Literal["paper", "panns_16k", "panns_32k"], typer.Option(help="The front-end it was trained with.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
) -> None:
    """Turn PANNs' CNN14 into an encoder bundle: a baseline, or a starting point; h is its 2048-d `embedding`.

    Example: `sepscene encoder import Cnn14_16k_mAP=0.438.pth --front-end panns_16k --out encoders/panns`
    """
    from sepscene.models.encoders.importer import import_encoder

    digest = import_encoder(file, front_end, out)
    console.print(f"{out}  {digest[:12]}")
    _print_assumptions(out)


def _print_assumptions(out: Path) -> None:
    """Print what the imported file left open and had to be assumed."""
    from sepscene.models.card import read_card

    for assumed in read_card(out).metadata["assumed"]:
        console.print(f"assumed {assumed}", style="yellow")


@encoder_app.command("export")
def export_encoder_command(
    encoder: Annotated[str, typer.Argument(help="Folder or MLflow URI of an encoder bundle.")],
    file: Annotated[Path, typer.Argument(help="The .pth file to write.")],
    trust_code: TrustCode = False,
) -> None:
    """Write an encoder's weights under PANNs' names, with the front-end's buffers, for other people's code.

    Example: `sepscene encoder export runs/demo/encoder cnn14.pth`
    """
    from sepscene.models.encoders.encoder import load_encoder
    from sepscene.models.encoders.importer import export_panns

    export_panns(load_encoder(encoder), file)
    console.print(str(file))


def embed_command(
    encoder: Annotated[str, typer.Argument(help="Folder of an encoder bundle or of a run, or an MLflow URI.")],
    inputs: Annotated[
        list[str], typer.Argument(help="Files, folders, manifests (.csv, .parquet), FORMAT:FOLDER; `-` reads a list.")
    ],
    out: Annotated[Path, typer.Option(help="`NAME.parquet`, or `NAME.npy` with `NAME.names.json` beside it.")],
    device: Device = "auto",
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Half precision on a GPU.")] = False,
    readers: Annotated[int, typer.Option(min=1, help="Files decoded ahead.")] = 2,
    actors: Annotated[int, typer.Option(min=0, help="Spread over this many Ray actors; 0 stays here.")] = 0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of one actor.")] = 0.0,
    address: Annotated[str | None, typer.Option(help="Ray cluster, with `--actors`.")] = None,
    trust_code: TrustCode = False,
) -> None:
    """Turn sound files into embeddings; goes on where it stopped; bad files are listed at the end (exit code 3).

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
    console.print(f"{report.out}: {report.written} new, {report.skipped} there already")
    for entry in report.left_out:
        console.print(f"left out: {entry}", soft_wrap=True)
    for uri, cause in report.bad.items():
        print(f"{uri}: {cause}", file=sys.stderr)
    if report.bad:
        raise typer.Exit(3)
