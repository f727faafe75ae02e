"""Speed of generating synthetic scenes, as a multiple of real time, on one core.

    python -m benchmarks.scenes

Known numbers: a scene of 10 s has 160,000 samples and takes 320 kB as 16-bit WAV. For each of its 2 to 5 events, one
synthesis and one convolution with a room response are computed, and for the background two noises of full length.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported, to measure one core

import statistics
import time

from sepscene.augment.synthetic.scenes import EVENTS, SceneConfig, generate_scene
from sepscene.augment.synthetic.synthesis import Synth

SCENES = 40
ROUNDS = 5
TARGET = 50.0


def main() -> None:
    """Print the speed of whole scenes (median, slowest), and of each event class."""
    config = SceneConfig()
    generate_scene(0, 0, config)
    rates = []
    for number in range(ROUNDS):
        begin = time.process_time()
        for index in range(SCENES):
            generate_scene(number, index, config)
        rates.append(SCENES * config.clip_seconds / (time.process_time() - begin))
    median = statistics.median(rates)
    slowest = min(rates)
    print(f"scenes      {median:.0f} x real time on one core, at least {slowest:.0f} x (target: {TARGET:.0f} x)")
    for name, make in sorted(EVENTS.items()):
        seconds = 0.0
        costs = []
        for seed in range(15):
            synth = Synth(seed, config.sample_rate)
            begin = time.process_time()
            seconds += len(make(synth)) / config.sample_rate
            costs.append(time.process_time() - begin)
        print(f"{name:<12}{1e3 * statistics.median(costs):6.2f} ms for {seconds / 15:4.1f} s")


if __name__ == "__main__":
    main()
