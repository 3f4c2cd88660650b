// controls hide the lower half of a small picture: they come with the pointer, a touch or the keyboard
for (const video of document.querySelectorAll("video")) {
  video.controls = false;
  for (const sign of ["pointerenter", "focus", "click"])
    video.addEventListener(sign, () => { video.controls = true; });
  video.addEventListener("pointerleave", () => { video.controls = !video.paused; });
}
