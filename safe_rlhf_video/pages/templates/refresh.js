const body = document.getElementById("body"), state = document.getElementById("state");
async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("body", {cache: "no-store"});
    if (!answer.ok) throw new Error(await answer.text());
    const text = await answer.text(), places = [...body.querySelectorAll(".panels")].map(row => row.scrollLeft);
    body.innerHTML = text;
    body.querySelectorAll(".panels").forEach((row, at) => { row.scrollLeft = places[at] ?? 0; });
    state.textContent = "";
  } catch (error) {
    state.textContent = "Not updated: scripts/dashboard.py does not answer (" + error.message + ").";
  }
}
setInterval(refresh, {{ refresh_s * 1000 }});
document.addEventListener("visibilitychange", refresh);
