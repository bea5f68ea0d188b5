"use strict";
// One clip at a time; the line over its spectrogram is the playing position. The button plays and pauses there, a press
// on the spectrogram plays from there, and the arrow keys move by a second.
for (const button of document.querySelectorAll(".play")) {
  const audio = button.parentElement.querySelector("audio");
  const head = button.querySelector(".head");
  const width = parseFloat(button.dataset.width);
  const length = () => audio.duration || parseFloat(button.dataset.seconds);
  const show = () => { head.style.left = (width * audio.currentTime) / length() + "%"; };
  const draw = () => { show(); if (!audio.paused) requestAnimationFrame(draw); };
  const seek = (seconds) => {
    audio.currentTime = Math.min(Math.max(seconds, 0), length());
    button.classList.add("begun");
    show();
  };
  button.addEventListener("click", (event) => {
    const toggle = event.detail === 0 || event.target.classList.contains("icon");
    if (toggle && !audio.paused) { audio.pause(); return; }
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    const box = button.getBoundingClientRect();
    if (!toggle) seek(((event.clientX - box.left) / box.width) * (100 / width) * length());
    if (audio.currentTime >= length() - 0.01) seek(0);
    audio.play();
  });
  button.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); seek(audio.currentTime + step); }
  });
  audio.addEventListener("play", () => { button.classList.add("on", "begun"); draw(); });
  for (const end of ["pause", "ended"]) audio.addEventListener(end, () => { button.classList.remove("on"); show(); });
}

// The numbers nearest to the pointer, for every series of a chart.
const tip = document.getElementById("tip");
for (const chart of document.querySelectorAll("svg.chart")) {
  const { x, y, series } = JSON.parse(chart.dataset.points);
  const hover = chart.querySelector(".hover");
  const escape = (text) => text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
  const scatter = series.every((curve) => curve.at.length === 1);
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const view = chart.viewBox.baseVal;
    const px = ((event.clientX - box.left) / box.width) * view.width;
    const py = ((event.clientY - box.top) / box.height) * view.height;
    let nearest = series.map((curve) => {
      let best = curve.at[0], distance = Infinity;
      for (const point of curve.at) {
        const d = scatter ? Math.hypot(point[0] - px, point[1] - py) : Math.abs(point[0] - px);
        if (d < distance) { distance = d; best = point; }
      }
      return { curve, best, distance };
    });
    if (scatter) nearest = [nearest.reduce((a, b) => (a.distance < b.distance ? a : b))];
    hover.innerHTML = nearest.map(({ curve, best }) => `<circle class="s${curve.index}" cx="${best[0]}" cy="${best[1]}" r="5"/>`).join("");
    tip.innerHTML = scatter
      ? `<b>${escape(nearest[0].curve.name)}</b><br>${escape(x)}: ${nearest[0].best[2]}<br>${escape(y)}: ${nearest[0].best[3]}`
      : `${escape(x)}<br>` + nearest.map(({ curve, best }) => `<b>${escape(curve.name)}</b> ${best[3]} <small>at ${best[2]}</small>`).join("<br>");
    tip.style.display = "block";
    const left = Math.min(event.pageX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = event.pageY + 16 + "px";
  });
  chart.addEventListener("pointerleave", () => { tip.style.display = "none"; hover.innerHTML = ""; });
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.parentElement.querySelector("pre").textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}
