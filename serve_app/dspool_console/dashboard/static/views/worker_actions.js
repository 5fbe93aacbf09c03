import { poolPath, send } from "../api.js";
import { actionButton } from "../dialog.js";
import { h } from "../dom.js";

/** How long the page waits to hear that a worker is gone, in seconds; it goes on in any case. */
const WAIT_S = 2;

/** They are on their way out already. */
const GOING = ["draining", "stopped", "failed", "dead"];

/** Drain and restart, for a row and for the page of one worker. */
export function workerActions(ctx, { id, state }, quiet = true) {
  if (GOING.includes(state)) return h("span", { class: "muted small" }, state === "draining" ? "goes by itself" : "–");
  const act = (verb) => async () => {
    const { gone } = await send("POST", poolPath(ctx.pool, "workers", id, verb), { wait_s: WAIT_S });
    const name = verb === "drain" ? "drained" : "restarted";
    return gone ? `${id} is ${name}.` : `${id} is being ${name}; it finishes what it runs first.`;
  };
  return [
    actionButton(ctx, {
      label: "Drain",
      quiet,
      title: `Take ${id} out of traffic and stop it`,
      ask: () => ({
        title: "Drain this worker?",
        text: `${id} takes no new operations, finishes those it has, gives its sessions back and stops. ` +
          "A replacement starts at once.",
        verb: "Drain",
      }),
      run: act("drain"),
    }),
    actionButton(ctx, {
      label: "Restart",
      quiet,
      title: `Replace ${id}`,
      ask: () => ({
        title: "Restart this worker?",
        text: `A replacement is made warm first; then ${id} finishes what it has and stops. Its sessions move.`,
        verb: "Restart",
      }),
      run: act("restart"),
    }),
  ];
}
