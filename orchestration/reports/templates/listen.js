// One sound plays at a time. Another sound of the same block continues at the same position, for comparison. A click on a
// picture jumps to that position. Sounds are loaded when they are first played.
const SILENT_DB = -60, MAX_ATTENUATION_DB = 18;
const loop = document.querySelector("#loop"), match = document.querySelector("#match");
let playing = null;

class Player {
  constructor(element, block) {
    this.element = element;
    this.block = block;
    this.audio = element.querySelector("audio");
    this.mel = element.querySelector(".mel");
    this.button = element.querySelector(".play");
    this.level = Number(element.dataset.level);
    this.audio.removeAttribute("controls");
    this.button.hidden = false;
    this.button.addEventListener("click", () => (playing === this ? this.stop() : this.play(this.position())));
    this.mel.addEventListener("click", (event) => {
      const box = this.mel.getBoundingClientRect();
      this.play(this.duration() * (event.clientX - box.left) / box.width);
    });
    this.audio.addEventListener("ended", () => this.stop());
    this.audio.addEventListener("error", () => this.element.classList.add("missing"));
  }

  duration() {
    return Number(this.element.dataset.seconds);
  }

  // Start position: that of the sound of this block that is playing, or else the last position of this sound.
  position() {
    const from = playing && playing.block === this.block ? playing : this;
    return from.audio.currentTime < this.duration() - 0.05 ? from.audio.currentTime : 0;
  }

  play(seconds) {
    if (playing && playing !== this) playing.stop();
    playing = this;
    if (this !== this.block.players[0]) this.block.other = this;
    this.audio.loop = loop.checked;
    this.audio.volume = match.checked ? this.block.volume(this.level) : 1;
    this.audio.currentTime = seconds;
    this.audio.play().catch(() => this.element.classList.add("missing"));
    this.element.classList.add("on");
    this.button.setAttribute("aria-pressed", "true");
    const draw = () => {
      this.mel.style.setProperty("--at", 100 * this.audio.currentTime / this.duration() + "%");
      if (playing === this) requestAnimationFrame(draw);
    };
    draw();
  }

  stop() {
    this.audio.pause();
    this.element.classList.remove("on");
    this.button.setAttribute("aria-pressed", "false");
    if (playing === this) playing = null;
  }
}

class Section {
  constructor(element) {
    this.players = [...element.querySelectorAll(".player")].map((each) => new Player(each, this));
    const levels = this.players.map((player) => player.level).filter((level) => level > SILENT_DB);
    this.target = Math.max(Math.min(...levels), Math.max(...levels) - MAX_ATTENUATION_DB);
    this.other = this.players[Number(element.dataset.second)] || this.players[1];
    const swap = element.querySelector(".swap");
    swap.hidden = this.players.length < 2;
    swap.addEventListener("click", () => {
      const next = playing === this.players[0] ? this.other : this.players[0];
      next.play(next.position());
    });
  }

  // Louder sounds are turned down to the level of the quietest one, by at most MAX_ATTENUATION_DB.
  volume(level) {
    return Math.min(1, 10 ** ((this.target - level) / 20));
  }
}

const blocks = [...document.querySelectorAll(".block")].map((element) => new Section(element));
for (const tool of [loop, match]) {
  tool.addEventListener("change", () => {
    if (!playing) return;
    playing.audio.loop = loop.checked;
    playing.audio.volume = match.checked ? playing.block.volume(playing.level) : 1;
  });
}
