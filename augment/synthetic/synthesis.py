"""Building blocks of synthetic sound: tones, noise, resonances, rhythms and rooms.

Shapes: T samples, H harmonics, P partials, N notes or strokes. Waves are float32; frequencies are in Hz, durations in
seconds.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import fft, signal

_TABLE = 2048  # samples of the stored period; fine enough for 16-bit sound at the frequencies used


def curve(samples: int, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Piecewise linear curve (T,) through evenly spaced values, e.g. a contour of pitch or loudness."""
    return np.interp(np.linspace(0, len(values) - 1, samples), np.arange(len(values)), values).astype(np.float32)


class Synth(np.random.Generator):
    """A random generator with a sample rate, whose methods create and change waves. All draws are its own."""

    def __init__(self, seed: int | Sequence[int], rate: int) -> None:
        """Args:
        seed: seed of all random numbers, as of `numpy.random.default_rng`.
        rate: sample rate in Hz.
        """
        super().__init__(np.random.PCG64(seed))
        self.rate = rate

    def log_uniform(self, low: float, high: float) -> float:
        """A value between low and high with uniform logarithm, which matches the perception of pitch and duration."""
        return float(np.exp(self.uniform(np.log(low), np.log(high))))

    def length(self, seconds: float) -> int:
        """Number of samples of a duration, at least one."""
        return max(1, round(seconds * self.rate))

    def fade(self, wave_T: np.ndarray, attack: float, release: float) -> np.ndarray:
        """The wave with linear attack and release, which are shortened in proportion if the wave is too short."""
        samples = len(wave_T)
        rise = self.length(attack)
        fall = self.length(release)
        shrink = min(1.0, samples / (rise + fall))
        rise = max(1, int(rise * shrink))
        fall = max(1, int(fall * shrink))
        faded_T = wave_T.copy()
        faded_T[:rise] *= np.linspace(0, 1, rise, endpoint=False, dtype=np.float32)[:samples]
        faded_T[samples - fall :] *= np.linspace(1, 0, fall, dtype=np.float32)
        return faded_T

    def overtones(
        self,
        base: float,
        decibels_per_octave: float,
        formants: Iterable[tuple[float, float]] = (),
        spread: float = 3.0,
    ) -> np.ndarray:
        """Amplitudes (H,) of the harmonics of `base` below the Nyquist frequency, i.e. a timbre.

        Args:
            base: the HIGHEST fundamental frequency used with this timbre, to avoid aliasing.
            decibels_per_octave: spectral slope, negative for dull sounds.
            formants: (centre, width) of resonances, which raise the harmonics near them by up to 18 dB.
            spread: standard deviation in dB of random variations of the harmonics, so that instances differ.
        """
        count = max(1, min(_TABLE // 4, int(0.47 * self.rate / base)))
        harmonic_H = np.arange(1, count + 1)
        level_H = decibels_per_octave * np.log2(harmonic_H) + spread * self.standard_normal(count)
        for centre, width in formants:
            level_H += 18.0 * np.exp(-(((harmonic_H * base - centre) / width) ** 2))
        return 10 ** (level_H / 20)

    def tone(self, pitch_T: np.ndarray, amplitude_H: np.ndarray) -> np.ndarray:
        """A harmonic sound (T,) of varying pitch, by wavetable synthesis.

        One table lookup per sample costs the same for one harmonic as for a hundred.
        """
        spectrum = np.zeros(_TABLE // 2 + 1, np.complex128)
        spectrum[1 : 1 + len(amplitude_H)] = amplitude_H * np.exp(2j * np.pi * self.random(len(amplitude_H)))
        table = fft.irfft(spectrum)
        table = (table / np.sqrt(np.mean(table**2))).astype(np.float32)
        phase_T = np.cumsum(pitch_T, dtype=np.float64) * (_TABLE / self.rate)
        return table[phase_T.astype(np.int64) % _TABLE]

    def noise(self, samples: int) -> np.ndarray:
        """White noise (T,) of unit variance."""
        return self.standard_normal(samples, dtype=np.float32)

    def band(self, wave_T: np.ndarray, low: float, high: float) -> np.ndarray:
        """The wave after a band-pass filter (Butterworth, 12 dB per octave), normalised to unit RMS."""
        nyquist = self.rate / 2
        high = min(high, 0.95 * nyquist)
        low = min(low, 0.8 * high)
        sections = signal.butter(2, (low / nyquist, high / nyquist), "bandpass", output="sos")
        filtered_T = signal.sosfilt(sections, wave_T)
        return (filtered_T / (np.sqrt(np.mean(filtered_T**2)) + 1e-9)).astype(np.float32)

    def coloured(self, samples: int, decibels_per_octave: float) -> np.ndarray:
        """Noise (T,) with a spectral slope in dB per octave, normalised to unit RMS."""
        size = fft.next_fast_len(samples, real=True)
        spectrum = fft.rfft(self.noise(size))
        octave = np.log2(np.maximum(np.arange(len(spectrum)) * (self.rate / size), 30.0) / 30.0)
        wave_T = fft.irfft(spectrum * (10 ** (decibels_per_octave * octave / 20)).astype(np.float32), size)[:samples]
        return (wave_T / np.sqrt(np.mean(wave_T**2))).astype(np.float32)

    def ring(self, partial_P: np.ndarray, decay_P: np.ndarray, level_P: np.ndarray | None = None) -> np.ndarray:
        """The sound of a struck body (T,): partials that decay by 60 dB in their decay times."""
        kept = partial_P < 0.47 * self.rate
        if not kept.any():
            kept[np.argmin(partial_P)] = True
        partial_P = partial_P[kept]
        decay_P = np.maximum(decay_P[kept], 1e-3)
        level_P = np.ones(len(partial_P)) if level_P is None else level_P[kept]
        time_T = np.arange(self.length(float(decay_P.max())), dtype=np.float32) / self.rate
        wave_T = np.zeros(len(time_T), np.float32)
        for frequency, decay, level in zip(partial_P, decay_P, level_P, strict=True):
            part_T = time_T[: self.length(float(decay))]
            phase = 2 * np.pi * self.random()
            wave_T[: len(part_T)] += np.float32(level) * (
                np.sin(np.float32(2 * np.pi * frequency) * part_T + np.float32(phase))
                * np.exp(np.float32(-6.9 / decay) * part_T)
            )
        return wave_T

    def place(self, samples: int, start_N: Iterable[float], wave_N: Iterable[np.ndarray]) -> np.ndarray:
        """Sum of N waves, each from its start in seconds on, cut to a wave (T,) of `samples` samples."""
        total_T = np.zeros(samples, np.float32)
        for start, wave_T in zip(start_N, wave_N, strict=True):
            first = round(start * self.rate)
            part_T = wave_T[: max(0, samples - first)]
            total_T[first : first + len(part_T)] += part_T
        return total_T

    def beats(self, count: int, period: float, jitter: float) -> np.ndarray:
        """Starts in seconds (N,) of a rhythm; each interval deviates from the period by up to a share `jitter`."""
        steps = period * (1 + jitter * self.uniform(-1, 1, count))
        return np.concatenate([[0.0], np.cumsum(steps[:-1])])

    def in_rhythm(self, wave_N: Sequence[np.ndarray], period: float, jitter: float, tail: float) -> np.ndarray:
        """Place N waves at the starts of a rhythm (`beats`). The sum (T,) ends `tail` seconds after the last."""
        start_N = self.beats(len(wave_N), period, jitter)
        return self.place(self.length(float(start_N[-1]) + tail), start_N, wave_N)

    def shelf(self, wave_T: np.ndarray, corner: float, decibels: float) -> np.ndarray:
        """The wave after a shelving filter with a gain of `decibels` well above the frequency `corner`."""
        pole = float(np.exp(-2 * np.pi * corner / self.rate))
        low_T = signal.lfilter([1 - pole], [1, -pole], wave_T)
        gain = 10 ** (decibels / 20)
        return (gain * wave_T + (1 - gain) * low_T).astype(np.float32)

    def colour(self, wave_T: np.ndarray) -> np.ndarray:
        """Colour an event like a room and a microphone do, with two random shelving filters (middle and treble)."""
        for low, high in ((200, 1000), (1000, 4000)):
            wave_T = self.shelf(wave_T, self.log_uniform(low, high), self.uniform(-10, 8))
        return wave_T

    def reverberate(self, wave_T: np.ndarray, seconds: float, wet: float) -> np.ndarray:
        """The wave with reverberation that decays by 60 dB in `seconds`, `wet` times as loud as the direct sound.

        Returns:
            float32, longer than the input by the tail of the reverberation.
        """
        samples = self.length(seconds)
        decay_T = np.exp(np.linspace(0, -6.9, samples, dtype=np.float32))
        echo_T = self.noise(samples) * decay_T
        echo_T *= np.float32(wet / (np.sqrt(np.sum(echo_T**2)) + 1e-9))
        echo_T[0] += 1.0
        return signal.oaconvolve(wave_T, echo_T).astype(np.float32)
