// Runs before any other code of the page is here, and asks what that will ask first: who looks, and how the pool is.
(() => {
  const root = new URL("../../../", document.currentScript.src).pathname;
  const asked = new Map();
  const ask = (path) => {
    const answer = fetch(path, { credentials: "same-origin" });
    // Whoever takes it sees that it failed.
    answer.catch(() => {});
    asked.set(path, answer);
    return answer;
  };
  globalThis.askedEarly = asked;
  ask(`${root}dashboard/me`).then(async (answer) => {
    if (!answer.ok) return;
    const me = await answer.clone().json();
    const [named] = location.hash.replace(/^#\/?/, "").split(/[/?]/);
    const pool = named ? me.pools?.find((name) => encodeURIComponent(name) === named) : me.pools?.[0];
    if (pool && !me.login_needed) ask(`${root}v1/pools/${encodeURIComponent(pool)}/overview`);
  }).catch(() => {});
})();
