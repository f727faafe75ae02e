"""Sound events without a pitch: strokes, rhythms, water, wind. Each call generates a new instance of its class.

Every function returns one event (T,), float32, of any level. Hammer, knock, chopping and footsteps have similar
resonances; they differ in rhythm, decay and brightness.

Shapes: T samples, P partials.
"""

import numpy as np

from sepscene.augment.synthetic.synthesis import Synth, curve


def dishes(synth: Synth) -> np.ndarray:
    """Two to nine clinks of china, metal and glass at irregular times."""
    count = int(synth.integers(2, 10))
    clinks = []
    for loudness in synth.uniform(0.2, 1, count):
        partial_P = synth.log_uniform(600, 3200) * synth.uniform(1, 4.5, 5)
        clinks.append(loudness * synth.ring(partial_P, synth.uniform(0.03, 0.35, 5)))
    starts = np.sort(synth.uniform(0, synth.uniform(0.6, 3), count))
    return synth.place(synth.length(float(starts[-1]) + 0.5), starts, clinks)


def footsteps(synth: Synth) -> np.ndarray:
    """Footsteps on one floor: heel, then sole."""
    count = int(synth.integers(4, 12))
    period = synth.uniform(0.38, 0.75)
    thud = synth.log_uniform(80, 480)
    scrape = synth.log_uniform(500, 4000)
    steps = []
    for loudness in synth.uniform(0.6, 1, count):
        heel_T = _thump(synth, thud, synth.uniform(0.05, 0.1))
        samples = synth.length(synth.uniform(0.06, 0.14))
        sole_T = synth.fade(synth.band(synth.noise(samples), scrape / 2, scrape * 2), 0.01, 0.08)
        step_T = synth.place(synth.length(0.3), (0, 0.06), (1.2 * heel_T, synth.uniform(0.05, 0.7) * sole_T))
        steps.append(loudness * step_T)
    return synth.in_rhythm(steps, period, jitter=0.06, tail=0.3)


def knock(synth: Synth) -> np.ndarray:
    """Knuckles on a door: one or two quick groups of hollow strokes."""
    body = synth.log_uniform(120, 900)
    period = synth.uniform(0.13, 0.28)
    click = synth.uniform(0.05, 0.6)
    starts: list[float] = []
    for group in range(int(synth.integers(1, 3))):
        starts += (group * synth.uniform(1.0, 1.6) + synth.beats(int(synth.integers(2, 6)), period, 0.08)).tolist()
    strokes = [g * _thump(synth, body, synth.uniform(0.06, 0.16), click) for g in synth.uniform(0.6, 1, len(starts))]
    return synth.place(synth.length(max(starts) + 0.4), starts, strokes)


def hammer(synth: Synth) -> np.ndarray:
    """Metal on metal or on a nail: bright, ringing strokes."""
    count = int(synth.integers(3, 10))
    period = synth.uniform(0.3, 0.8)
    partial_P = synth.log_uniform(450, 1500) * np.array([1, 1.52, 2.33, 3.1, 4.4]) * synth.uniform(0.92, 1.08, 5)
    decay_P = synth.uniform(0.08, 0.5) * np.linspace(1, 0.4, 5)
    strokes = []
    for loudness in synth.uniform(0.5, 1, count):
        click_T = _thump(synth, synth.uniform(150, 300), 0.06, 0.5)
        ringing_T = synth.ring(partial_P, decay_P)
        strokes.append(loudness * synth.place(len(ringing_T), (0, 0), (ringing_T, 2 * click_T)))
    return synth.in_rhythm(strokes, period, jitter=0.1, tail=0.5)


def chopping(synth: Synth) -> np.ndarray:
    """A knife on a board: quick runs of dull, dry strokes."""
    count = int(synth.integers(5, 18))
    period = synth.uniform(0.15, 0.38)
    board = synth.log_uniform(100, 900)
    click = synth.uniform(0.05, 0.9)
    strokes = [g * _thump(synth, board, synth.uniform(0.025, 0.07), click) for g in synth.uniform(0.4, 1, count)]
    return synth.in_rhythm(strokes, period, jitter=0.18, tail=0.3)


def woodpecker(synth: Synth) -> np.ndarray:
    """Drum rolls on a trunk, first louder, then softer."""
    trunk = synth.log_uniform(300, 2600)
    period = 1 / synth.uniform(12, 24)
    click = synth.uniform(0.05, 0.8)
    rolls = []
    starts = []
    for roll in range(int(synth.integers(1, 4))):
        count = int(synth.integers(9, 24))
        swell = curve(count, (0.5, 1, 0.8, 0.3))
        taps = [g * _thump(synth, trunk, synth.uniform(0.02, 0.045), click) for g in swell]
        rolls.append(synth.place(synth.length((count + 2) * period), synth.beats(count, period, 0.05), taps))
        starts.append(roll * synth.uniform(1.3, 2.0))
    return synth.place(synth.length(max(starts) + 2), starts, rolls)


def keyboard(synth: Synth) -> np.ndarray:
    """Typing: short clicks at irregular times; each key has a press and a softer release."""
    count = int(synth.integers(8, 36))
    period = synth.uniform(0.09, 0.24)
    key = synth.log_uniform(400, 4200)
    click = synth.uniform(0.1, 1)
    clicks = []
    for loudness in synth.uniform(0.3, 1, count):
        press_T = _thump(synth, key * synth.uniform(0.8, 1.25), synth.uniform(0.01, 0.03), click)
        release = synth.uniform(0.05, 0.09)
        clicks.append(loudness * synth.place(synth.length(0.12), (0, release), (press_T, 0.35 * press_T)))
    return synth.in_rhythm(clicks, period, jitter=0.7, tail=0.2)


def water_tap(synth: Synth) -> np.ndarray:
    """Running water: steady broad noise with bubbling resonances."""
    samples = synth.length(synth.uniform(2, 5.5))
    stream_T = synth.band(synth.noise(samples), synth.log_uniform(150, 1600), synth.uniform(2500, 7500))
    bubble = synth.log_uniform(400, 1500)
    bubbles_T = synth.band(synth.noise(samples), bubble, bubble * 1.6) * curve(samples, synth.uniform(0, 1, 40))
    return synth.fade(
        stream_T + synth.uniform(0.4, 1.2) * bubbles_T, synth.uniform(0.02, 0.3), synth.uniform(0.05, 0.4)
    )


def frying(synth: Synth) -> np.ndarray:
    """Hot fat: hiss, and crackles at random times."""
    samples = synth.length(synth.uniform(2.5, 6))
    density = synth.log_uniform(15, 120) / synth.rate
    sparks_T = (synth.random(samples, dtype=np.float32) < density) * synth.standard_exponential(
        samples, dtype=np.float32
    )
    crackle_T = synth.band(sparks_T, synth.log_uniform(400, 2600), synth.uniform(3000, 7500))
    hiss_T = synth.band(synth.noise(samples), synth.log_uniform(300, 3000), 7500) * curve(
        samples, synth.uniform(0.5, 1, 6)
    )
    return synth.fade(crackle_T + synth.uniform(0.3, 0.9) * hiss_T, 0.4, 0.5)


def waves(synth: Synth) -> np.ndarray:
    """One or two waves that swell, break with bright noise and fade out darker."""
    washes = []
    starts = []
    for wash in range(int(synth.integers(1, 3))):
        samples = synth.length(synth.uniform(2, 4))
        swell_T = synth.coloured(samples, synth.uniform(-8, -1)) * curve(samples, (0, 0.4, 1, 0.7, 0.4, 0.15, 0))
        foam_T = synth.band(synth.noise(samples), synth.log_uniform(500, 2500), synth.uniform(3500, 7500))
        foam_T *= curve(samples, (0, 0, 0.3, 1, 0.6, 0.2, 0))
        washes.append(swell_T + synth.uniform(0.2, 1) * foam_T)
        starts.append(wash * synth.uniform(2, 3.5))
    return synth.place(synth.length(max(starts) + 4), starts, washes)


def wind_gust(synth: Synth) -> np.ndarray:
    """A gust: narrow-band noise whose frequency follows its strength; sometimes it whistles."""
    samples = synth.length(synth.uniform(2.5, 5.5))
    centre = synth.log_uniform(120, 900)
    force_T = curve(samples, (0, *synth.uniform(0.3, 1, 5), 0))
    wave_T = np.zeros(samples, np.float32)
    for step in range(3):  # a moving band, by crossfading three fixed bands
        share_T = np.maximum(0, 1 - np.abs(2 * force_T - step))
        low = centre * 1.8**step
        wave_T += synth.band(synth.noise(samples), low, low * synth.uniform(1.3, 2.2)) * share_T
    return wave_T * force_T


def printer(synth: Synth) -> np.ndarray:
    """Strokes of a carriage and a humming motor, in regular rhythm."""
    count = int(synth.integers(3, 10))
    period = synth.uniform(0.25, 0.65)
    hum = synth.log_uniform(180, 700)
    low = synth.log_uniform(250, 2600)
    strokes = []
    for _ in range(count):
        samples = synth.length(period * synth.uniform(0.5, 0.7))
        pitch_T = hum * curve(samples, (0.7, 1, 1, 0.8))
        motor_T = synth.tone(pitch_T, synth.overtones(hum, -5))
        slide_T = synth.band(synth.noise(samples), low, 3.5 * low)
        strokes.append(synth.fade(slide_T + synth.uniform(0.15, 0.6) * motor_T, 0.03, 0.05))
    return synth.place(synth.length(count * period + 0.2), np.arange(count) * period, strokes)


def _thump(synth: Synth, body: float, seconds: float, click: float = 0.25) -> np.ndarray:
    """A dry stroke: three resonances of a body, and a click of noise at the contact."""
    partial_P = body * np.array([1, 1.6, 2.7]) * synth.uniform(0.9, 1.1, 3)
    stroke_T = synth.ring(partial_P, seconds * np.array([1, 0.7, 0.5]), np.array([1, 0.6, 0.35]))
    contact = min(len(stroke_T), synth.length(0.012))
    stroke_T[:contact] += click * synth.noise(contact) * np.linspace(1, 0, contact, dtype=np.float32)
    return stroke_T
