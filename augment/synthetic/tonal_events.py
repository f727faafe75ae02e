"""Sound events with a pitch: horns, voices, animals, motors, bells. Each call generates a new instance of its class.

Every function returns one event (T,), float32, of any level. The frequency ranges of the classes overlap on purpose
(gull and siren, engine and ship's horn), so that classes differ in the movement of the sound, not in its frequency
range.

Shapes: T samples, H harmonics, P partials.
"""

import numpy as np

from sepscene.augment.synthetic.synthesis import Synth, curve


def car_horn(synth: Synth) -> np.ndarray:
    """One to three honks of two steady reeds about a third apart."""
    base = synth.log_uniform(240, 620)
    interval = synth.uniform(1.18, 1.34)
    low = synth.overtones(base, synth.uniform(-7, -2))
    high = synth.overtones(base * interval, synth.uniform(-7, -2))
    count = int(synth.integers(1, 4))
    honks = []
    for seconds in synth.uniform(0.12, 0.9, count):
        pitch_T = np.full(synth.length(seconds), base, np.float32)
        honk_T = synth.tone(pitch_T, low) + synth.tone(pitch_T * interval, high)
        honks.append(synth.fade(honk_T, 0.01, 0.03))
    return synth.in_rhythm(honks, synth.uniform(0.3, 1.1), jitter=0.2, tail=1)


def siren(synth: Synth) -> np.ndarray:
    """A wail, a yelp or two alternating tones, for a few seconds."""
    samples = synth.length(synth.uniform(2, 5))
    low = synth.log_uniform(380, 800)
    depth = synth.uniform(1.3, 2.2)
    speed = synth.log_uniform(0.25, 4)
    cycle_T = (np.arange(samples) * (speed / synth.rate) + synth.random()) % 1
    shape = int(synth.integers(3))
    if shape == 0:
        place_T = 0.5 - 0.5 * np.cos(2 * np.pi * cycle_T)
    elif shape == 1:
        place_T = cycle_T
    else:
        place_T = (cycle_T < 0.5).astype(np.float64)
    pitch_T = (low * depth**place_T).astype(np.float32)
    return synth.fade(synth.tone(pitch_T, synth.overtones(low * depth, synth.uniform(-9, -3))), 0.3, 0.4)


def ship_horn(synth: Synth) -> np.ndarray:
    """One or two long low blasts, each with a detuned copy that causes beats."""
    base = synth.log_uniform(65, 260)
    slope = synth.uniform(-8, -2)
    amplitude_H = synth.overtones(base * 1.01, slope)
    count = int(synth.integers(1, 3))
    blasts = []
    for seconds in synth.uniform(1.0, 2.6, count):
        samples = synth.length(seconds)
        pitch_T = base * curve(samples, (0.94, 1, 1, 1, 0.97))
        blast_T = synth.tone(pitch_T, amplitude_H)
        blast_T += synth.tone(pitch_T * synth.uniform(1.002, 1.01), amplitude_H)
        blast_T += 0.3 * synth.band(synth.noise(samples), base, 8 * base)
        blasts.append(synth.fade(blast_T, synth.uniform(0.1, 0.3), 0.3))
    return synth.in_rhythm(blasts, synth.uniform(1.8, 3.2), jitter=0.1, tail=2.6)


def kettle(synth: Synth) -> np.ndarray:
    """Hissing steam that becomes a rising whistle with vibrato."""
    samples = synth.length(synth.uniform(2.5, 5))
    top = synth.log_uniform(1300, 3600)
    tremble_T = 1 + 0.01 * np.sin(np.arange(samples) * (2 * np.pi * synth.uniform(4, 9) / synth.rate))
    pitch_T = top * curve(samples, (synth.uniform(0.5, 0.8), 0.95, 1, 1)) * tremble_T
    whistle_T = synth.tone(pitch_T, synth.overtones(top * 1.02, synth.uniform(-20, -10)))
    hiss_T = synth.band(synth.noise(samples), 1500, 7000)
    return synth.fade(whistle_T * curve(samples, (0.05, 0.5, 1, 1)) + synth.uniform(0.2, 0.5) * hiss_T, 0.4, 0.3)


def beeps(synth: Synth) -> np.ndarray:
    """Electronic beeps on one or two alternating notes: a timer, a telephone, a reversing truck."""
    count = int(synth.integers(2, 9))
    period = synth.log_uniform(0.14, 0.6)
    note = synth.log_uniform(500, 2800)
    notes = (note, note * (1 if synth.random() < 0.5 else synth.uniform(0.75, 1.35)))
    slope = synth.uniform(-24, -8)
    share = synth.uniform(0.35, 0.8)
    waves = []
    for beat in range(count):
        pitch_T = np.full(synth.length(period * share), notes[beat % 2], np.float32)
        beep_T = synth.tone(pitch_T, synth.overtones(max(notes), slope, spread=1))
        waves.append(synth.fade(beep_T, 0.004, 0.01))
    return synth.place(synth.length(count * period), np.arange(count) * period, waves)


def speech(synth: Synth) -> np.ndarray:
    """Syllables of a voice: gliding pitch, formants that change with each vowel, hissing consonants."""
    base = synth.log_uniform(90, 280)
    period = synth.uniform(0.16, 0.3)
    count = int(synth.integers(6, 16))
    stretch = synth.uniform(0.9, 1.25)  # a shorter vocal tract raises all formants
    slope = synth.uniform(-12, -3)
    syllables = []
    for _ in range(count):
        samples = synth.length(period * synth.uniform(0.55, 1.05))
        pitch_T = base * curve(samples, synth.uniform(0.85, 1.25, 3))
        vowel = [
            (stretch * synth.uniform(280, 850), 110),
            (stretch * synth.uniform(900, 2400), 180),
            (stretch * 2900, 260),
        ]
        voice_T = synth.tone(pitch_T, synth.overtones(base * 1.25, slope, vowel, 1))
        syllable_T = synth.fade(voice_T, 0.03, 0.06) * np.float32(synth.uniform(0.5, 1))
        if synth.random() < 0.4:
            hiss = min(samples, synth.length(0.06))
            syllable_T[:hiss] += 0.5 * synth.fade(synth.band(synth.noise(hiss), 2500, 7000), 0.01, 0.03)
        syllables.append(syllable_T)
    return synth.in_rhythm(syllables, period, jitter=0.2, tail=0.4)


def laughter(synth: Synth) -> np.ndarray:
    """A series of breathy bursts of falling pitch on one vowel."""
    count = int(synth.integers(4, 11))
    period = synth.uniform(0.15, 0.26)
    base = synth.log_uniform(170, 460)
    vowel = [(synth.uniform(500, 900), 150), (synth.uniform(1100, 1900), 200)]
    slope = synth.uniform(-12, -3)
    breath = synth.uniform(0.1, 0.8)
    bursts = []
    for pitch in base * np.linspace(1, synth.uniform(0.6, 0.9), count) * synth.uniform(0.95, 1.05, count):
        samples = synth.length(period * synth.uniform(0.45, 0.65))
        pitch_T = pitch * curve(samples, (1.15, 1, 0.9))
        voice_T = synth.tone(pitch_T, synth.overtones(base * 1.3, slope, vowel, 1))
        bursts.append(synth.fade(voice_T + breath * synth.band(synth.noise(samples), 700, 4500), 0.02, 0.06))
    return synth.place(synth.length(count * period + 0.3), synth.beats(count, period, 0.1), bursts)


def dog_bark(synth: Synth) -> np.ndarray:
    """One to five rough barks whose pitch jumps up and falls."""
    count = int(synth.integers(1, 6))
    base = synth.log_uniform(220, 750)
    throat = [(base * synth.uniform(1.5, 3), 300.0)]
    barks = []
    for _ in range(count):
        samples = synth.length(synth.uniform(0.09, 0.24))
        pitch_T = base * curve(samples, (0.75, synth.uniform(1.1, 1.35), 1, 0.65))
        voice_T = synth.tone(pitch_T, synth.overtones(base * 1.35, -5, throat))
        rough_T = synth.band(synth.noise(samples), base, 6 * base)
        barks.append(synth.fade(voice_T + synth.uniform(0.3, 0.8) * rough_T, 0.01, 0.09))
    return synth.in_rhythm(barks, synth.uniform(0.28, 0.7), jitter=0.3, tail=0.4)


def gull(synth: Synth) -> np.ndarray:
    """Two to seven harsh falling cries."""
    count = int(synth.integers(2, 8))
    base = synth.log_uniform(700, 1700)
    cries = []
    for _ in range(count):
        samples = synth.length(synth.uniform(0.16, 0.5))
        pitch_T = base * curve(samples, (0.85, synth.uniform(1.1, 1.3), 1, synth.uniform(0.6, 0.85)))
        cry_T = synth.tone(pitch_T, synth.overtones(base * 1.3, synth.uniform(-5, 0)))
        flutter_T = 1 + 0.5 * np.sin(np.arange(samples) * (2 * np.pi * synth.uniform(35, 80) / synth.rate))
        cries.append(synth.fade((cry_T * flutter_T).astype(np.float32), 0.03, 0.1))
    return synth.in_rhythm(cries, synth.uniform(0.3, 0.7), jitter=0.2, tail=0.6)


def rooster(synth: Synth) -> np.ndarray:
    """One crow: two short calls, a rise, and a long fall."""
    samples = synth.length(synth.uniform(1.2, 2.3))
    base = synth.log_uniform(380, 800)
    contour = np.array([0.8, 1, 0.85, 1.1, 0.9, 1.4, 1.5, 1.45, 1.3, 1.0, 0.7]) * synth.uniform(0.93, 1.07, 11)
    loudness = (0.6, 0.8, 0.1, 0.9, 0.1, 1, 1, 1, 0.9, 0.6, 0.2)
    voice = synth.overtones(base * 1.65, synth.uniform(-5, 0), [(synth.uniform(1200, 2400), 500)])
    crow_T = synth.tone(base * curve(samples, contour), voice) * curve(samples, loudness)
    return synth.fade(crow_T + 0.15 * synth.band(synth.noise(samples), base, 5 * base), 0.03, 0.2)


def bird_song(synth: Synth) -> np.ndarray:
    """A phrase of whistled chirps, either similar or varied."""
    count = int(synth.integers(4, 16))
    centre = synth.log_uniform(1700, 5000)
    variety = synth.choice([0.05, 0.3])
    sweep = synth.uniform(0.75, 1.35, 3)
    notes = []
    for _ in range(count):
        samples = synth.length(synth.log_uniform(0.04, 0.25))
        shape = sweep * synth.uniform(1 - variety, 1 + variety, 3)
        pitch_T = np.minimum(centre * curve(samples, shape), 0.45 * synth.rate).astype(np.float32)
        whistle = synth.overtones(float(pitch_T.max()), synth.uniform(-25, -12), spread=1)
        notes.append(synth.fade(synth.tone(pitch_T, whistle), 0.015, 0.03))
    return synth.in_rhythm(notes, synth.log_uniform(0.1, 0.3), jitter=0.25, tail=0.3)


def cricket(synth: Synth) -> np.ndarray:
    """A high tone with fast pulses, gated into chirps."""
    samples = synth.length(synth.uniform(2, 5))
    carrier = synth.log_uniform(2600, 5600)
    pulse = synth.uniform(20, 65)
    chirp = synth.log_uniform(1.2, 4.5)
    time_T = np.arange(samples, dtype=np.float32) / synth.rate
    pulses_T = np.maximum(0, np.sin(2 * np.pi * pulse * time_T))
    gate_T = np.clip(8 * (np.sin(2 * np.pi * chirp * time_T) + synth.uniform(-0.3, 0.6)), 0, 1)
    pitch_T = np.full(samples, carrier, np.float32)
    song_T = synth.tone(pitch_T, synth.overtones(carrier, -25, spread=1)) * pulses_T * gate_T
    return synth.fade(song_T.astype(np.float32), 0.1, 0.2)


def frog(synth: Synth) -> np.ndarray:
    """Croaks: slow pulses of a throat resonance."""
    count = int(synth.integers(1, 6))
    pulse = synth.log_uniform(35, 110)
    throat = [(synth.log_uniform(350, 2400), 180.0), (synth.log_uniform(900, 3600), 250.0)]
    croaks = []
    for _ in range(count):
        samples = synth.length(synth.uniform(0.18, 0.6))
        pitch_T = pulse * curve(samples, synth.uniform(0.85, 1.15, 3))
        croaks.append(synth.fade(synth.tone(pitch_T, synth.overtones(pulse * 1.15, -3, throat)), 0.05, 0.1))
    return synth.in_rhythm(croaks, synth.uniform(0.5, 1.1), jitter=0.25, tail=0.7)


def engine(synth: Synth) -> np.ndarray:
    """A motor that idles, speeds up or passes by: low harmonics, and exhaust noise modulated in their rhythm."""
    samples = synth.length(synth.uniform(2.5, 6))
    base = synth.log_uniform(35, 140)
    speed_T = curve(samples, synth.uniform(0.8, 1.3, 4))
    motor_T = synth.tone(base * speed_T, synth.overtones(base * 1.3, synth.uniform(-8, -2), spread=5))
    beat_T = 1 + 0.8 * synth.tone(base / 2 * speed_T, np.ones(2))
    exhaust_T = synth.band(synth.noise(samples), 80, synth.log_uniform(500, 6000)) * beat_T
    passing_T = curve(samples, synth.uniform(0.3, 1, 4))
    return synth.fade((motor_T + synth.uniform(0.2, 0.7) * exhaust_T).astype(np.float32) * passing_T, 0.5, 0.6)


def drill(synth: Synth) -> np.ndarray:
    """An electric tool that speeds up, slows down under load, and stops."""
    samples = synth.length(synth.uniform(1, 3.5))
    base = synth.log_uniform(130, 480)
    load = synth.uniform(0.7, 0.95)
    speed_T = curve(samples, (0.35, 1, 1, load, load, 1, 1, 0.4))
    motor_T = synth.tone(base * speed_T, synth.overtones(base, synth.uniform(-4, 0), spread=5))
    bite_T = synth.band(synth.noise(samples), 1500, synth.uniform(4000, 7500))
    bite_T *= curve(samples, (0.2, 0.4, 0.6, 1, 1, 0.5, 0.2))
    return synth.fade(motor_T + synth.uniform(0.3, 0.9) * bite_T, 0.05, 0.15)


def bell(synth: Synth) -> np.ndarray:
    """One to five strokes of a bell: inharmonic partials, with longer decay at low frequencies."""
    base = synth.log_uniform(230, 950)
    seconds = synth.log_uniform(0.6, 3)
    ratio_P = np.array([0.5, 1, 1.19, 1.5, 2, 2.67, 3.01, 4.1]) * synth.uniform(0.97, 1.03, 8)
    decay_P = seconds * ratio_P ** synth.uniform(-1.0, -0.4)
    level_P = 10 ** (synth.uniform(-14, 0, 8) / 20)
    count = int(synth.integers(1, 6))
    strokes = [synth.ring(base * ratio_P, decay_P, level_P) * g for g in synth.uniform(0.5, 1, count)]
    return synth.in_rhythm(strokes, synth.uniform(0.35, 1.2), jitter=0.25, tail=seconds)
