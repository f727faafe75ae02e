// One sound at a time, a cursor that follows it over its picture, and a click on the picture to jump.
const players = [...document.querySelectorAll(".player")];
for (const player of players) {
  const audio = player.querySelector("audio");
  const mel = player.querySelector(".mel");
  const draw = () => {
    mel.style.setProperty("--at", 100 * audio.currentTime / (audio.duration || 1) + "%");
    if (!audio.paused) requestAnimationFrame(draw);
  };
  audio.addEventListener("play", () => {
    for (const other of players) if (other !== player) other.querySelector("audio").pause();
    mel.style.setProperty("--on", 1);
    draw();
  });
  audio.addEventListener("seeked", draw);
  mel.addEventListener("click", (event) => {
    const box = mel.getBoundingClientRect();
    audio.currentTime = (event.clientX - box.left) / box.width * (audio.duration || 0);
    audio.play();
  });
}
