"""Parts of the GPU check that need only torch. Each returns the results that `benchmarks.gpu_check` saves.

Shapes: B clips or examples, T samples, N pairs.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import encoder as encoder_benchmark
from benchmarks import separator as separator_benchmark
from sepscene.augment.augmentations.built_in import SpecAugmentation
from sepscene.augment.augmentations.settings import SpecAugment
from sepscene.augment.draws import SPECAUGMENT_UNIFORMS
from sepscene.augment.separation.forward import Forward
from sepscene.models.encoders.cnn14 import Cnn14
from sepscene.models.encoders.encoder import Encoder, EncoderConfig
from sepscene.models.encoders.frontend import FRONT_ENDS
from sepscene.models.encoders.heads import CoincidenceHead
from sepscene.models.separators.fast_path import fast_separator
from sepscene.models.separators.folder import load_separator
from sepscene.models.separators.importer import import_separator
from sepscene.models.settings import Cnn14Config, TDCNppConfig
from sepscene.orchestration.training.health import out_of_memory
from sepscene.tasks.losses.coincidence import coincidence_loss
from sepscene.tasks.losses.nt_xent import nt_xent

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"
ROUNDS = 5
SMALL_MATRIX = 256
"""Size of the matrix products at the small size, which only shows that the parts run."""


def networks(device: str, small: bool, out: Path) -> dict[str, Any]:
    """Separators and CNN14 compared with the reference vectors: signal-to-error ratio in decibels, per precision."""
    if not REFERENCE.is_dir():
        return {"skipped": f"{REFERENCE} does not exist"}
    rows = []
    for tf32 in (False, True) if torch.device(device).type == "cuda" else (False,):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        for name in ("tdcnpp_small_m2", "tdcnpp_small_stft_m4"):
            rows += [{"network": name, "TF32": tf32, **row} for row in _separators(name, device, out)]
        rows.append({"network": "cnn14", "TF32": tf32, "way": "plain", "SNR dB": _cnn14(device)})
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return {"device": _name(device), "rows": rows}


def _separators(name: str, device: str, out: Path) -> list[dict[str, Any]]:
    import_separator(REFERENCE / name / "model.ckpt-1234", 16_000, out / "separators" / name)
    plain = load_separator(out / "separators" / name)
    vectors = np.load(REFERENCE / name / "vectors.npz")
    wave_BT = torch.from_numpy(vectors["mixture"]).to(device)
    expected_BST = torch.from_numpy(vectors["separated"])
    ways = {
        "plain": plain.to(device),
        "fast float32": fast_separator(plain, device, "float32"),
        "fast bfloat16": fast_separator(plain, device, "bfloat16"),
    }
    with torch.inference_mode():
        found = {way: separator(wave_BT).float().cpu() for way, separator in ways.items()}
    return [{"way": way, "SNR dB": separator_benchmark.snr_db(expected_BST, value)} for way, value in found.items()]


def _cnn14(device: str) -> float:
    """SNR in decibels of CNN14 in PANNs' size, with the synthetic weights of the reference."""
    from tests.models.encoders.test_cnn14 import reference_state

    trunk = Cnn14(Cnn14Config(embedding_dim=2048, activation="relu", classes=527)).eval()
    names = {"fc1": "embedding", "fc_audioset": "tags"}
    state = {}
    for name, tensor in reference_state(REFERENCE).items():
        first, _, rest = name.partition(".")
        state[f"{names.get(first, first)}.{rest}"] = tensor
    trunk.load_state_dict({name: tensor for name, tensor in state.items() if name in trunk.state_dict()})
    vectors = np.load(REFERENCE / "cnn14_panns.npz")
    with torch.inference_mode():
        found = trunk.to(device)(torch.from_numpy(vectors["logmel"]).to(device)).cpu()
    return separator_benchmark.snr_db(torch.from_numpy(vectors["embedding"]), found)


def separator(device: str, small: bool, out: Path) -> dict[str, Any]:
    """Plain, fast and compiled separators: seconds per clip, share of the device's peak FLOP/s, memory."""
    config, seconds, clips = (TDCNppConfig.tiny(), 1.0, 2) if small else (TDCNppConfig(), 10.0, 8)
    samples = round(seconds * config.sample_rate)
    wave_BT = 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(0)).to(device)
    ways = {name: separator_benchmark.build(name, config, device) for name in separator_benchmark.VARIANTS}
    backend = "eager" if small else "inductor"
    ways["compiled float32"] = cast(
        nn.Module, torch.compile(separator_benchmark.build("plain float32", config, device), backend=backend)
    )
    best = separator_benchmark.ceilings(device, ROUNDS, SMALL_MATRIX if small else None)
    flops = 2 * clips * separator_benchmark.multiply_adds(config, samples)
    rows = []
    with torch.inference_mode():
        for name, network in ways.items():
            taken, peak = _measured(lambda network=network: network(wave_BT), device)  # type: ignore[misc]
            ceiling = best["bfloat16 FLOP/s" if "bfloat16" in name else "float32 FLOP/s"]
            share = "" if name.startswith("Conv") else flops / taken / ceiling
            rows.append({"way": name, "s/clip": taken / clips, "share of peak": share, "peak MB": peak})
    return {"device": _name(device), "clips": clips, **best, "rows": rows}


def encoder(device: str, small: bool, out: Path) -> dict[str, Any]:
    """Forward pass, and forward and backward pass: examples per second, MFU, memory."""
    config, batch = (Cnn14Config.tiny(), 4) if small else (Cnn14Config(), 256)
    front_end = FRONT_ENDS["panns_16k"]
    torch.manual_seed(0)
    network = Encoder(EncoderConfig(front_end=front_end, trunk=config)).to(device)
    wave_BT = 0.1 * torch.randn(batch, network.patch_samples, device=device)
    adds = encoder_benchmark.multiply_adds(config, front_end.frames(network.patch_samples))
    best = separator_benchmark.ceilings(device, ROUNDS, SMALL_MATRIX if small else None)
    rows = []
    for name, (module, half) in encoder_benchmark.variants(network, compiled=False).items():
        for what, factor, make in (
            ("forward", 1, encoder_benchmark.forward_step),
            ("forward and backward", 3, encoder_benchmark.training_step),
        ):
            taken, peak = _measured(make(module, half, wave_BT), device)
            mfu = 2 * factor * adds * batch / taken / best["bfloat16 FLOP/s" if half else "float32 FLOP/s"]
            rows.append({"way": name, "what": what, "examples/s": batch / taken, "MFU": mfu, "peak MB": peak})
    return {"device": _name(device), "batch": batch, "rows": rows}


def losses(device: str, small: bool, out: Path) -> dict[str, Any]:
    """SpecAugment, NT-Xent and coincidence prediction with N pairs: time, memory, gradients compared with float64."""
    pairs, width = (64, 16) if small else (4096, 128)
    torch.manual_seed(0)
    z_1, z_2 = (torch.randn(pairs, width, device=device, requires_grad=True) for _ in range(2))
    head = CoincidenceHead(width).to(device)
    work: dict[str, Callable[[], Any]] = {
        "NT-Xent": lambda: nt_xent(z_1, z_2, temperature=0.2).backward(),
        "coincidence": lambda: coincidence_loss(head, z_1, z_2).backward(),
    }
    logmel_BLF = torch.randn(pairs, 96, 64, device=device)
    uniforms_BU = torch.rand(pairs, SPECAUGMENT_UNIFORMS, device=device)
    specaugment = SpecAugmentation(SpecAugment())
    work["SpecAugment"] = lambda: specaugment(logmel_BLF, uniforms_BU, None)
    rows = []
    for name, call in work.items():
        taken, peak = _measured(call, device)
        rows.append({"what": name, "N": pairs, "ms": 1e3 * taken, "peak MB": peak})
    return {"device": _name(device), "NT-Xent's gradient, SNR dB": _gradient_snr(device), "rows": rows}


def _gradient_snr(device: str) -> float:
    draws = [torch.randn(48, 16, dtype=torch.float64) for _ in range(2)]

    def gradient(dtype: torch.dtype, where: str) -> Tensor:
        z_1, z_2 = (draw.detach().clone().to(where, dtype).requires_grad_() for draw in draws)
        nt_xent(z_1, z_2, temperature=0.2).backward()
        assert z_1.grad is not None
        return z_1.grad.cpu().double()

    return separator_benchmark.snr_db(gradient(torch.float64, "cpu"), gradient(torch.float32, device))


def copies(device: str, small: bool, out: Path) -> dict[str, Any]:
    """Separator passes with pinned memory and streams: submitted ahead, compared with one after the other."""
    config, seconds, clips, passes = (TDCNppConfig.tiny(), 1.0, 2, 3) if small else (TDCNppConfig(), 10.0, 8, 6)
    network = separator_benchmark.build("fast float32", config, device)
    pcm_BT = np.random.default_rng(0).integers(-9000, 9000, (clips, round(seconds * config.sample_rate)), np.int16)
    forward = Forward(device, clips)
    results: dict[str, np.ndarray] = {}

    def ahead() -> None:
        waiting = [forward.submit(network, pcm_BT) for _ in range(passes)]
        results["ahead"] = [wait() for wait in waiting][-1]

    def in_turn() -> None:
        for _ in range(passes):
            results["in turn"] = forward.submit(network, pcm_BT)()

    taken = {name: _measured(call, device)[0] for name, call in (("ahead", ahead), ("in turn", in_turn))}
    same = bool(np.array_equal(results["ahead"], results["in turn"]))
    rows = [{"way": name, "s/clip": value / passes / clips} for name, value in taken.items()]
    return {"device": _name(device), "both give the same samples": same, "rows": rows}


def memory(device: str, small: bool, out: Path) -> dict[str, Any]:
    """Memory of a training step for each batch size, and the message for a batch that is too large for the device."""
    config, batches = (Cnn14Config.tiny(), (2, 4)) if small else (Cnn14Config(), (64, 256, 1024))
    network = Encoder(EncoderConfig(front_end=FRONT_ENDS["panns_16k"], trunk=config)).to(device)
    rows = []
    for batch in batches:
        wave_BT = 0.1 * torch.randn(batch, network.patch_samples, device=device)
        taken, peak = _measured(encoder_benchmark.training_step(network, False, wave_BT), device, rounds=2)
        rows.append({"batch": batch, "s/step": taken, "peak MB": peak})
    too_many_rows = 1 << (40 if device == "cpu" else 17)
    try:
        encoder_benchmark.training_step(
            network, False, torch.zeros(too_many_rows, network.patch_samples, device=device)
        )()
        message = "it fits"
    except RuntimeError as error:
        message = out_of_memory(error, "lower the batch") or f"not recognised: {error}"
    return {"device": _name(device), "too large a batch": message, "rows": rows}


def _measured(call: Callable[[], Any], device: str, rounds: int = ROUNDS) -> tuple[float, float]:
    """Median seconds of a call, without a first one as warm-up, and its peak memory in MB (0 on a CPU)."""
    on_gpu = torch.device(device).type == "cuda"
    call()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return median(seconds), torch.cuda.max_memory_allocated() / 1e6 if on_gpu else 0.0


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if torch.device(device).type == "cuda" else "CPU"
