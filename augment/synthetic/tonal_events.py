"""Sound events with a pitch: horns, voices, animals, motors, bells. Each call generates a new instance of its class.

Every function takes a random generator and a sample rate, and returns one event (T,), float32, of any level. The
frequency ranges of the classes overlap on purpose (gull and siren, engine and ship's horn), so that classes differ in
the movement of the sound, not in its frequency range.

Shapes: T samples, H harmonics, P partials.
"""

import numpy as np

from sepscene.augment.synthetic.synthesis import (
    band,
    beats,
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


def car_horn(rng: np.random.Generator, rate: int) -> np.ndarray:
    """One to three honks of two steady reeds about a third apart."""
    base = log_uniform(rng, 240, 620)
    interval = rng.uniform(1.18, 1.34)
    low = overtones(rng, base, rate, rng.uniform(-7, -2))
    high = overtones(rng, base * interval, rate, rng.uniform(-7, -2))
    count = int(rng.integers(1, 4))
    honks = []
    for seconds in rng.uniform(0.12, 0.9, count):
        pitch_T = np.full(length(seconds, rate), base, np.float32)
        honk_T = tone(rng, pitch_T, low, rate) + tone(rng, pitch_T * interval, high, rate)
        honks.append(fade(honk_T, rate, 0.01, 0.03))
    return in_rhythm(rng, rate, honks, rng.uniform(0.3, 1.1), jitter=0.2, tail=1)


def siren(rng: np.random.Generator, rate: int) -> np.ndarray:
    """A wail, a yelp or two alternating tones, for a few seconds."""
    samples = length(rng.uniform(2, 5), rate)
    low = log_uniform(rng, 380, 800)
    depth = rng.uniform(1.3, 2.2)
    speed = log_uniform(rng, 0.25, 4)
    cycle_T = (np.arange(samples) * (speed / rate) + rng.random()) % 1
    shape = int(rng.integers(3))
    if shape == 0:
        place_T = 0.5 - 0.5 * np.cos(2 * np.pi * cycle_T)
    elif shape == 1:
        place_T = cycle_T
    else:
        place_T = (cycle_T < 0.5).astype(np.float64)
    pitch_T = (low * depth**place_T).astype(np.float32)
    return fade(tone(rng, pitch_T, overtones(rng, low * depth, rate, rng.uniform(-9, -3)), rate), rate, 0.3, 0.4)


def ship_horn(rng: np.random.Generator, rate: int) -> np.ndarray:
    """One or two long low blasts, each with a detuned copy that causes beats."""
    base = log_uniform(rng, 65, 260)
    slope = rng.uniform(-8, -2)
    amplitude_H = overtones(rng, base * 1.01, rate, slope)
    count = int(rng.integers(1, 3))
    blasts = []
    for seconds in rng.uniform(1.0, 2.6, count):
        samples = length(seconds, rate)
        pitch_T = base * curve(samples, (0.94, 1, 1, 1, 0.97))
        blast_T = tone(rng, pitch_T, amplitude_H, rate)
        blast_T += tone(rng, pitch_T * rng.uniform(1.002, 1.01), amplitude_H, rate)
        blast_T += 0.3 * band(noise(rng, samples), rate, base, 8 * base)
        blasts.append(fade(blast_T, rate, rng.uniform(0.1, 0.3), 0.3))
    return in_rhythm(rng, rate, blasts, rng.uniform(1.8, 3.2), jitter=0.1, tail=2.6)


def kettle(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Hissing steam that becomes a rising whistle with vibrato."""
    samples = length(rng.uniform(2.5, 5), rate)
    top = log_uniform(rng, 1300, 3600)
    tremble_T = 1 + 0.01 * np.sin(np.arange(samples) * (2 * np.pi * rng.uniform(4, 9) / rate))
    pitch_T = top * curve(samples, (rng.uniform(0.5, 0.8), 0.95, 1, 1)) * tremble_T
    whistle_T = tone(rng, pitch_T, overtones(rng, top * 1.02, rate, rng.uniform(-20, -10)), rate)
    hiss_T = band(noise(rng, samples), rate, 1500, 7000)
    return fade(whistle_T * curve(samples, (0.05, 0.5, 1, 1)) + rng.uniform(0.2, 0.5) * hiss_T, rate, 0.4, 0.3)


def beeps(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Electronic beeps on one or two alternating notes: a timer, a telephone, a reversing truck."""
    count = int(rng.integers(2, 9))
    period = log_uniform(rng, 0.14, 0.6)
    note = log_uniform(rng, 500, 2800)
    notes = (note, note * (1 if rng.random() < 0.5 else rng.uniform(0.75, 1.35)))
    slope = rng.uniform(-24, -8)
    share = rng.uniform(0.35, 0.8)
    waves = []
    for beat in range(count):
        pitch_T = np.full(length(period * share, rate), notes[beat % 2], np.float32)
        beep_T = tone(rng, pitch_T, overtones(rng, max(notes), rate, slope, spread=1), rate)
        waves.append(fade(beep_T, rate, 0.004, 0.01))
    return place(length(count * period, rate), np.arange(count) * period, waves, rate)


def speech(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Syllables of a voice: gliding pitch, formants that change with each vowel, hissing consonants."""
    base = log_uniform(rng, 90, 280)
    period = rng.uniform(0.16, 0.3)
    count = int(rng.integers(6, 16))
    stretch = rng.uniform(0.9, 1.25)  # a shorter vocal tract raises all formants
    slope = rng.uniform(-12, -3)
    syllables = []
    for _ in range(count):
        samples = length(period * rng.uniform(0.55, 1.05), rate)
        pitch_T = base * curve(samples, rng.uniform(0.85, 1.25, 3))
        vowel = [
            (stretch * rng.uniform(280, 850), 110),
            (stretch * rng.uniform(900, 2400), 180),
            (stretch * 2900, 260),
        ]
        voice_T = tone(rng, pitch_T, overtones(rng, base * 1.25, rate, slope, vowel, 1), rate)
        syllable_T = fade(voice_T, rate, 0.03, 0.06) * np.float32(rng.uniform(0.5, 1))
        if rng.random() < 0.4:
            hiss = min(samples, length(0.06, rate))
            syllable_T[:hiss] += 0.5 * fade(band(noise(rng, hiss), rate, 2500, 7000), rate, 0.01, 0.03)
        syllables.append(syllable_T)
    return in_rhythm(rng, rate, syllables, period, jitter=0.2, tail=0.4)


def laughter(rng: np.random.Generator, rate: int) -> np.ndarray:
    """A series of breathy bursts of falling pitch on one vowel."""
    count = int(rng.integers(4, 11))
    period = rng.uniform(0.15, 0.26)
    base = log_uniform(rng, 170, 460)
    vowel = [(rng.uniform(500, 900), 150), (rng.uniform(1100, 1900), 200)]
    slope = rng.uniform(-12, -3)
    breath = rng.uniform(0.1, 0.8)
    bursts = []
    for pitch in base * np.linspace(1, rng.uniform(0.6, 0.9), count) * rng.uniform(0.95, 1.05, count):
        samples = length(period * rng.uniform(0.45, 0.65), rate)
        pitch_T = pitch * curve(samples, (1.15, 1, 0.9))
        voice_T = tone(rng, pitch_T, overtones(rng, base * 1.3, rate, slope, vowel, 1), rate)
        bursts.append(fade(voice_T + breath * band(noise(rng, samples), rate, 700, 4500), rate, 0.02, 0.06))
    return place(length(count * period + 0.3, rate), beats(rng, count, period, 0.1), bursts, rate)


def dog_bark(rng: np.random.Generator, rate: int) -> np.ndarray:
    """One to five rough barks whose pitch jumps up and falls."""
    count = int(rng.integers(1, 6))
    base = log_uniform(rng, 220, 750)
    throat = [(base * rng.uniform(1.5, 3), 300.0)]
    barks = []
    for _ in range(count):
        samples = length(rng.uniform(0.09, 0.24), rate)
        pitch_T = base * curve(samples, (0.75, rng.uniform(1.1, 1.35), 1, 0.65))
        voice_T = tone(rng, pitch_T, overtones(rng, base * 1.35, rate, -5, throat), rate)
        rough_T = band(noise(rng, samples), rate, base, 6 * base)
        barks.append(fade(voice_T + rng.uniform(0.3, 0.8) * rough_T, rate, 0.01, 0.09))
    return in_rhythm(rng, rate, barks, rng.uniform(0.28, 0.7), jitter=0.3, tail=0.4)


def gull(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Two to seven harsh falling cries."""
    count = int(rng.integers(2, 8))
    base = log_uniform(rng, 700, 1700)
    cries = []
    for _ in range(count):
        samples = length(rng.uniform(0.16, 0.5), rate)
        pitch_T = base * curve(samples, (0.85, rng.uniform(1.1, 1.3), 1, rng.uniform(0.6, 0.85)))
        cry_T = tone(rng, pitch_T, overtones(rng, base * 1.3, rate, rng.uniform(-5, 0)), rate)
        flutter_T = 1 + 0.5 * np.sin(np.arange(samples) * (2 * np.pi * rng.uniform(35, 80) / rate))
        cries.append(fade((cry_T * flutter_T).astype(np.float32), rate, 0.03, 0.1))
    return in_rhythm(rng, rate, cries, rng.uniform(0.3, 0.7), jitter=0.2, tail=0.6)


def rooster(rng: np.random.Generator, rate: int) -> np.ndarray:
    """One crow: two short calls, a rise, and a long fall."""
    samples = length(rng.uniform(1.2, 2.3), rate)
    base = log_uniform(rng, 380, 800)
    contour = np.array([0.8, 1, 0.85, 1.1, 0.9, 1.4, 1.5, 1.45, 1.3, 1.0, 0.7]) * rng.uniform(0.93, 1.07, 11)
    loudness = (0.6, 0.8, 0.1, 0.9, 0.1, 1, 1, 1, 0.9, 0.6, 0.2)
    voice = overtones(rng, base * 1.65, rate, rng.uniform(-5, 0), [(rng.uniform(1200, 2400), 500)])
    crow_T = tone(rng, base * curve(samples, contour), voice, rate) * curve(samples, loudness)
    return fade(crow_T + 0.15 * band(noise(rng, samples), rate, base, 5 * base), rate, 0.03, 0.2)


def bird_song(rng: np.random.Generator, rate: int) -> np.ndarray:
    """A phrase of whistled chirps, either similar or varied."""
    count = int(rng.integers(4, 16))
    centre = log_uniform(rng, 1700, 5000)
    variety = rng.choice([0.05, 0.3])
    sweep = rng.uniform(0.75, 1.35, 3)
    notes = []
    for _ in range(count):
        samples = length(log_uniform(rng, 0.04, 0.25), rate)
        shape = sweep * rng.uniform(1 - variety, 1 + variety, 3)
        pitch_T = np.minimum(centre * curve(samples, shape), 0.45 * rate).astype(np.float32)
        whistle = overtones(rng, float(pitch_T.max()), rate, rng.uniform(-25, -12), spread=1)
        notes.append(fade(tone(rng, pitch_T, whistle, rate), rate, 0.015, 0.03))
    return in_rhythm(rng, rate, notes, log_uniform(rng, 0.1, 0.3), jitter=0.25, tail=0.3)


def cricket(rng: np.random.Generator, rate: int) -> np.ndarray:
    """A high tone with fast pulses, gated into chirps."""
    samples = length(rng.uniform(2, 5), rate)
    carrier = log_uniform(rng, 2600, 5600)
    pulse = rng.uniform(20, 65)
    chirp = log_uniform(rng, 1.2, 4.5)
    time_T = np.arange(samples, dtype=np.float32) / rate
    pulses_T = np.maximum(0, np.sin(2 * np.pi * pulse * time_T))
    gate_T = np.clip(8 * (np.sin(2 * np.pi * chirp * time_T) + rng.uniform(-0.3, 0.6)), 0, 1)
    pitch_T = np.full(samples, carrier, np.float32)
    song_T = tone(rng, pitch_T, overtones(rng, carrier, rate, -25, spread=1), rate) * pulses_T * gate_T
    return fade(song_T.astype(np.float32), rate, 0.1, 0.2)


def frog(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Croaks: slow pulses of a throat resonance."""
    count = int(rng.integers(1, 6))
    pulse = log_uniform(rng, 35, 110)
    throat = [(log_uniform(rng, 350, 2400), 180.0), (log_uniform(rng, 900, 3600), 250.0)]
    croaks = []
    for _ in range(count):
        samples = length(rng.uniform(0.18, 0.6), rate)
        pitch_T = pulse * curve(samples, rng.uniform(0.85, 1.15, 3))
        croaks.append(fade(tone(rng, pitch_T, overtones(rng, pulse * 1.15, rate, -3, throat), rate), rate, 0.05, 0.1))
    return in_rhythm(rng, rate, croaks, rng.uniform(0.5, 1.1), jitter=0.25, tail=0.7)


def engine(rng: np.random.Generator, rate: int) -> np.ndarray:
    """A motor that idles, speeds up or passes by: low harmonics, and exhaust noise modulated in their rhythm."""
    samples = length(rng.uniform(2.5, 6), rate)
    base = log_uniform(rng, 35, 140)
    speed_T = curve(samples, rng.uniform(0.8, 1.3, 4))
    motor_T = tone(rng, base * speed_T, overtones(rng, base * 1.3, rate, rng.uniform(-8, -2), spread=5), rate)
    beat_T = 1 + 0.8 * tone(rng, base / 2 * speed_T, np.ones(2), rate)
    exhaust_T = band(noise(rng, samples), rate, 80, log_uniform(rng, 500, 6000)) * beat_T
    passing_T = curve(samples, rng.uniform(0.3, 1, 4))
    return fade((motor_T + rng.uniform(0.2, 0.7) * exhaust_T).astype(np.float32) * passing_T, rate, 0.5, 0.6)


def drill(rng: np.random.Generator, rate: int) -> np.ndarray:
    """An electric tool that speeds up, slows down under load, and stops."""
    samples = length(rng.uniform(1, 3.5), rate)
    base = log_uniform(rng, 130, 480)
    load = rng.uniform(0.7, 0.95)
    speed_T = curve(samples, (0.35, 1, 1, load, load, 1, 1, 0.4))
    motor_T = tone(rng, base * speed_T, overtones(rng, base, rate, rng.uniform(-4, 0), spread=5), rate)
    bite_T = band(noise(rng, samples), rate, 1500, rng.uniform(4000, 7500))
    bite_T *= curve(samples, (0.2, 0.4, 0.6, 1, 1, 0.5, 0.2))
    return fade(motor_T + rng.uniform(0.3, 0.9) * bite_T, rate, 0.05, 0.15)


def bell(rng: np.random.Generator, rate: int) -> np.ndarray:
    """One to five strokes of a bell: inharmonic partials, with longer decay at low frequencies."""
    base = log_uniform(rng, 230, 950)
    seconds = log_uniform(rng, 0.6, 3)
    ratio_P = np.array([0.5, 1, 1.19, 1.5, 2, 2.67, 3.01, 4.1]) * rng.uniform(0.97, 1.03, 8)
    decay_P = seconds * ratio_P ** rng.uniform(-1.0, -0.4)
    level_P = 10 ** (rng.uniform(-14, 0, 8) / 20)
    count = int(rng.integers(1, 6))
    strokes = [ring(rng, rate, base * ratio_P, decay_P, level_P) * g for g in rng.uniform(0.5, 1, count)]
    return in_rhythm(rng, rate, strokes, rng.uniform(0.35, 1.2), jitter=0.25, tail=seconds)
