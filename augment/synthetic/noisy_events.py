"""Sound events without a pitch: strokes, rhythms, water, wind. Each call generates a new instance of its class.

The functions have the same signature as in `augment.synthetic.tonal_events` and return one event (T,), float32, of any
level. Hammer, knock, chopping and footsteps have similar resonances; they differ in rhythm, decay and brightness.

Shapes: T samples, P partials.
"""

import numpy as np

from sepscene.augment.synthetic.synthesis import (
    band,
    beats,
    coloured,
    curve,
    fade,
    in_rhythm,
    length,
    log_uniform,
    noise,
    overtones,
    place,
    ring,
    tone,
)


def dishes(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Two to nine clinks of china, metal and glass at irregular times."""
    count = int(rng.integers(2, 10))
    clinks = []
    for loudness in rng.uniform(0.2, 1, count):
        partial_P = log_uniform(rng, 600, 3200) * rng.uniform(1, 4.5, 5)
        clinks.append(loudness * ring(rng, rate, partial_P, rng.uniform(0.03, 0.35, 5)))
    starts = np.sort(rng.uniform(0, rng.uniform(0.6, 3), count))
    return place(length(float(starts[-1]) + 0.5, rate), starts, clinks, rate)


def footsteps(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Footsteps on one floor: heel, then sole."""
    count = int(rng.integers(4, 12))
    period = rng.uniform(0.38, 0.75)
    thud = log_uniform(rng, 80, 480)
    scrape = log_uniform(rng, 500, 4000)
    steps = []
    for loudness in rng.uniform(0.6, 1, count):
        heel_T = _thump(rng, rate, thud, rng.uniform(0.05, 0.1))
        samples = length(rng.uniform(0.06, 0.14), rate)
        sole_T = fade(band(noise(rng, samples), rate, scrape / 2, scrape * 2), rate, 0.01, 0.08)
        step_T = place(length(0.3, rate), (0, 0.06), (1.2 * heel_T, rng.uniform(0.05, 0.7) * sole_T), rate)
        steps.append(loudness * step_T)
    return in_rhythm(rng, rate, steps, period, jitter=0.06, tail=0.3)


def knock(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Knuckles on a door: one or two quick groups of hollow strokes."""
    body = log_uniform(rng, 120, 900)
    period = rng.uniform(0.13, 0.28)
    click = rng.uniform(0.05, 0.6)
    starts: list[float] = []
    for group in range(int(rng.integers(1, 3))):
        starts += (group * rng.uniform(1.0, 1.6) + beats(rng, int(rng.integers(2, 6)), period, 0.08)).tolist()
    strokes = [g * _thump(rng, rate, body, rng.uniform(0.06, 0.16), click) for g in rng.uniform(0.6, 1, len(starts))]
    return place(length(max(starts) + 0.4, rate), starts, strokes, rate)


def hammer(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Metal on metal or on a nail: bright, ringing strokes."""
    count = int(rng.integers(3, 10))
    period = rng.uniform(0.3, 0.8)
    partial_P = log_uniform(rng, 450, 1500) * np.array([1, 1.52, 2.33, 3.1, 4.4]) * rng.uniform(0.92, 1.08, 5)
    decay_P = rng.uniform(0.08, 0.5) * np.linspace(1, 0.4, 5)
    strokes = []
    for loudness in rng.uniform(0.5, 1, count):
        click_T = _thump(rng, rate, rng.uniform(150, 300), 0.06, 0.5)
        ringing_T = ring(rng, rate, partial_P, decay_P)
        strokes.append(loudness * place(len(ringing_T), (0, 0), (ringing_T, 2 * click_T), rate))
    return in_rhythm(rng, rate, strokes, period, jitter=0.1, tail=0.5)


def chopping(rng: np.random.Generator, rate: int) -> np.ndarray:
    """A knife on a board: quick runs of dull, dry strokes."""
    count = int(rng.integers(5, 18))
    period = rng.uniform(0.15, 0.38)
    board = log_uniform(rng, 100, 900)
    click = rng.uniform(0.05, 0.9)
    strokes = [g * _thump(rng, rate, board, rng.uniform(0.025, 0.07), click) for g in rng.uniform(0.4, 1, count)]
    return in_rhythm(rng, rate, strokes, period, jitter=0.18, tail=0.3)


def woodpecker(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Drum rolls on a trunk, first louder, then softer."""
    trunk = log_uniform(rng, 300, 2600)
    period = 1 / rng.uniform(12, 24)
    click = rng.uniform(0.05, 0.8)
    rolls = []
    starts = []
    for roll in range(int(rng.integers(1, 4))):
        count = int(rng.integers(9, 24))
        swell = curve(count, (0.5, 1, 0.8, 0.3))
        taps = [g * _thump(rng, rate, trunk, rng.uniform(0.02, 0.045), click) for g in swell]
        rolls.append(place(length((count + 2) * period, rate), beats(rng, count, period, 0.05), taps, rate))
        starts.append(roll * rng.uniform(1.3, 2.0))
    return place(length(max(starts) + 2, rate), starts, rolls, rate)


def keyboard(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Typing: short clicks at irregular times; each key has a press and a softer release."""
    count = int(rng.integers(8, 36))
    period = rng.uniform(0.09, 0.24)
    key = log_uniform(rng, 400, 4200)
    click = rng.uniform(0.1, 1)
    clicks = []
    for loudness in rng.uniform(0.3, 1, count):
        press_T = _thump(rng, rate, key * rng.uniform(0.8, 1.25), rng.uniform(0.01, 0.03), click)
        release = rng.uniform(0.05, 0.09)
        clicks.append(loudness * place(length(0.12, rate), (0, release), (press_T, 0.35 * press_T), rate))
    return in_rhythm(rng, rate, clicks, period, jitter=0.7, tail=0.2)


def water_tap(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Running water: steady broad noise with bubbling resonances."""
    samples = length(rng.uniform(2, 5.5), rate)
    stream_T = band(noise(rng, samples), rate, log_uniform(rng, 150, 1600), rng.uniform(2500, 7500))
    bubble = log_uniform(rng, 400, 1500)
    bubbles_T = band(noise(rng, samples), rate, bubble, bubble * 1.6) * curve(samples, rng.uniform(0, 1, 40))
    return fade(stream_T + rng.uniform(0.4, 1.2) * bubbles_T, rate, rng.uniform(0.02, 0.3), rng.uniform(0.05, 0.4))


def frying(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Hot fat: hiss, and crackles at random times."""
    samples = length(rng.uniform(2.5, 6), rate)
    density = log_uniform(rng, 15, 120) / rate
    sparks_T = (rng.random(samples, dtype=np.float32) < density) * rng.standard_exponential(samples, dtype=np.float32)
    crackle_T = band(sparks_T, rate, log_uniform(rng, 400, 2600), rng.uniform(3000, 7500))
    hiss_T = band(noise(rng, samples), rate, log_uniform(rng, 300, 3000), 7500) * curve(samples, rng.uniform(0.5, 1, 6))
    return fade(crackle_T + rng.uniform(0.3, 0.9) * hiss_T, rate, 0.4, 0.5)


def waves(rng: np.random.Generator, rate: int) -> np.ndarray:
    """One or two waves that swell, break with bright noise and fade out darker."""
    washes = []
    starts = []
    for wash in range(int(rng.integers(1, 3))):
        samples = length(rng.uniform(2, 4), rate)
        swell_T = coloured(rng, samples, rate, rng.uniform(-8, -1)) * curve(samples, (0, 0.4, 1, 0.7, 0.4, 0.15, 0))
        foam_T = band(noise(rng, samples), rate, log_uniform(rng, 500, 2500), rng.uniform(3500, 7500))
        foam_T *= curve(samples, (0, 0, 0.3, 1, 0.6, 0.2, 0))
        washes.append(swell_T + rng.uniform(0.2, 1) * foam_T)
        starts.append(wash * rng.uniform(2, 3.5))
    return place(length(max(starts) + 4, rate), starts, washes, rate)


def wind_gust(rng: np.random.Generator, rate: int) -> np.ndarray:
    """A gust: narrow-band noise whose frequency follows its strength; sometimes it whistles."""
    samples = length(rng.uniform(2.5, 5.5), rate)
    centre = log_uniform(rng, 120, 900)
    force_T = curve(samples, (0, *rng.uniform(0.3, 1, 5), 0))
    wave_T = np.zeros(samples, np.float32)
    for step in range(3):  # a moving band, by crossfading three fixed bands
        share_T = np.maximum(0, 1 - np.abs(2 * force_T - step))
        low = centre * 1.8**step
        wave_T += band(noise(rng, samples), rate, low, low * rng.uniform(1.3, 2.2)) * share_T
    return wave_T * force_T


def printer(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Strokes of a carriage and a humming motor, in regular rhythm."""
    count = int(rng.integers(3, 10))
    period = rng.uniform(0.25, 0.65)
    hum = log_uniform(rng, 180, 700)
    low = log_uniform(rng, 250, 2600)
    strokes = []
    for _ in range(count):
        samples = length(period * rng.uniform(0.5, 0.7), rate)
        pitch_T = hum * curve(samples, (0.7, 1, 1, 0.8))
        motor_T = tone(rng, pitch_T, overtones(rng, hum, rate, -5), rate)
        slide_T = band(noise(rng, samples), rate, low, 3.5 * low)
        strokes.append(fade(slide_T + rng.uniform(0.15, 0.6) * motor_T, rate, 0.03, 0.05))
    return place(length(count * period + 0.2, rate), np.arange(count) * period, strokes, rate)


def _thump(rng: np.random.Generator, rate: int, body: float, seconds: float, click: float = 0.25) -> np.ndarray:
    """A dry stroke: three resonances of a body, and a click of noise at the contact."""
    partial_P = body * np.array([1, 1.6, 2.7]) * rng.uniform(0.9, 1.1, 3)
    stroke_T = ring(rng, rate, partial_P, seconds * np.array([1, 0.7, 0.5]), np.array([1, 0.6, 0.35]))
    contact = min(len(stroke_T), length(0.012, rate))
    stroke_T[:contact] += click * noise(rng, contact) * np.linspace(1, 0, contact, dtype=np.float32)
    return stroke_T
